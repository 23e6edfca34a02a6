//! L4: `check` and reload are of one mind about every file.

use std::{fs, path::Path};

use super::{path, site, start};
use crate::support::{Backend, LATE, Process};

#[test]
fn l4_check_and_reload_give_the_same_verdict() {
    let backend = Backend::named("a");
    let gate = start(&site(&[("a", &backend)]));
    let good = fs::read_to_string(path(&gate)).unwrap();
    let cases = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/diagnostics/cases");
    let mut texts: Vec<(String, String)> = fs::read_dir(cases)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "toml"))
        .map(|path| (path.display().to_string(), fs::read_to_string(&path).unwrap()))
        // Others would be bound.
        .filter(|(_, text)| sluicegate::config::parse(text, Path::new("")).is_err())
        .collect();
    let corpus = texts.len();
    for more in [
        "# a comment\n",
        "[timeouts]\nidle = \"1s\"\n",
        "[timeouts]\nidle = \"1\"\n",
        "[listener.b]\nbind = \"127.0.0.1:0\"\npool = \"web\"\nmax_connections = 3\n",
        "[listener.b]\nbind = \"127.0.0.1:0\"\npool = \"web\"\ntls = { cert = \"foobar.com.pem\", key = \"foobar.com.key\" }\n",
        "[listener.b]\nbind = \"127.0.0.1:0\"\npool = \"web\"\ntls = { cert = \"foobar.com.key\", key = \"foobar.com.pem\" }\n",
        "[listener.b]\nbind = \"127.0.0.1:0\"\npool = \"web\"\ntls = { cert = \"none.pem\", key = \"none.key\" }\n",
        "[pool.unused]\nbackends = [\"127.0.0.1:1\"]\n",
        "[firewall]\ndefault = \"deny\"\n",
        "[firewall]\nrules = [{ name = \"a\", deny = \"127.0.0.1\" }]\ntests = [{ from = \"127.0.0.1\", expect = \"allow\" }]\n",
        "[firewall]\nrules = [{ name = \"a\", deny_file = \"foobar.com.pem\" }]\n",
        "[firewall]\nrules = [{ name = \"a\", deny = \"10.0.0.5/8\" }]\n",
    ] {
        texts.push((more.to_owned(), format!("{good}{more}")));
    }
    texts.push(("too many".to_owned(), good.replace("[global]\n", "[global]\nmax_connections = 90000000\n")));
    let mut verdicts = [0; 2];
    for (name, text) in &texts {
        fs::write(path(&gate), text).unwrap();
        let run = |words: &[&str]| Process::run(words, gate.directory.path(), LATE);
        let check = run(&["check", "--config", "sluicegate.toml"]);
        let reload = run(&["reload", "--socket", "admin.sock"]);
        match (check.code, reload.code) {
            (Some(0), Some(0)) => verdicts[0] += 1,
            (Some(1), Some(3)) => verdicts[1] += 1,
            other => panic!("{name}: {other:?}\ncheck: {}\nreload: {}", check.stderr, reload.stderr),
        }
    }
    println!(
        "{} files, {corpus} of them from the corpus: {} accepted and {} refused by both",
        texts.len(),
        verdicts[0],
        verdicts[1]
    );
    assert!(verdicts[0] >= 6 && verdicts[1] > corpus, "{verdicts:?}");
    fs::write(path(&gate), good).unwrap();
    super::reload(&gate);
    gate.finish();
}
