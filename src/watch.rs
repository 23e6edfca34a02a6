//! The files of the configuration: when one of them has changed and is quiet again, a reload is ordered.
//!
//! The kernel tells that something happened in a directory, and a look from time to time makes up for file systems that
//! tell nothing. What counts is the look: files are told apart by what `stat` says of them, so a link that now leads
//! elsewhere, as Kubernetes changes whole directories, is a change like any other.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use tokio::time::{Instant, sleep, timeout};
use tracing::warn;

use crate::{
    config, load,
    running::{Counter, Live, Task, Who},
    sys::directory::Directories,
};

/// How long nothing has changed before it is read: editors and tools write in several steps.
const QUIET: Duration = Duration::from_millis(300);

/// How long that is waited for at most.
const RESTLESS: Duration = Duration::from_secs(2);

/// Between two looks while something happens, and while nothing does.
const STEP: Duration = Duration::from_millis(100);
const POLL: Duration = Duration::from_secs(10);

/// The clock of a file system is a little behind.
const LAG: Duration = Duration::from_millis(20);

/// Each file with what `stat` says of it; `None`: it is not there.
type Marks = BTreeMap<PathBuf, Option<Mark>>;

/// What changes when a file does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Mark {
    device: u64,
    inode: u64,
    size: u64,
    changed: (i64, i64),
}

/// Orders a reload whenever a file has changed since `read_at`, when the configuration that runs was about to be read.
pub async fn watch(live: Arc<Live>, counter: Counter, read_at: SystemTime) {
    let directories = Directories::new();
    let directories = directories.inspect_err(|error| warn!(%error, "files are looked at every {POLL:?}")).ok();
    let mut known = look(&live, directories.as_ref()).await;
    let mut is_due = known.values().flatten().any(|mark| mark.is_after(read_at - LAG));
    loop {
        while !is_due {
            wait(directories.as_ref()).await;
            is_due = look(&live, directories.as_ref()).await != known;
        }
        let settled = settle(&live, directories.as_ref()).await;
        if live.running().loaded.config.global.watch
            && counter.order(Who::Watch, Task::Reload { force: false }).await.is_err()
        {
            return;
        }
        // Another configuration may name other files. What changed while it was read has changed since.
        let now = look(&live, directories.as_ref()).await;
        is_due = now.iter().any(|(path, mark)| settled.get(path).is_some_and(|before| before != mark));
        known = now;
    }
}

/// Until something happened in a directory, or it is time to look in any case.
async fn wait(directories: Option<&Directories>) {
    match directories {
        Some(directories) => {
            if let Ok(Err(_)) = timeout(POLL, directories.changed()).await {
                sleep(POLL).await;
            }
            // More is to follow, most likely; and a directory where something happens all the time costs little.
            sleep(STEP).await;
        }
        None => sleep(POLL).await,
    }
}

/// Until nothing changes any more; how it is then.
async fn settle(live: &Arc<Live>, directories: Option<&Directories>) -> Marks {
    let begin = Instant::now();
    let (mut marks, mut last) = (look(live, directories).await, begin);
    while last.elapsed() < QUIET && begin.elapsed() < RESTLESS {
        sleep(STEP).await;
        let now = look(live, directories).await;
        if now != marks {
            (marks, last) = (now, Instant::now());
        }
    }
    marks
}

/// How every file is now, on a thread where a file system may take its time; and their directories are watched from here on.
async fn look(live: &Arc<Live>, directories: Option<&Directories>) -> Marks {
    let live = Arc::clone(live);
    let looked = tokio::task::spawn_blocking(move || {
        let marks: Marks = names(&live).into_iter().map(marked).collect();
        let places = marks.keys().flat_map(|path| places(path)).collect::<BTreeSet<_>>();
        (marks, places)
    });
    let Ok((marks, places)) = looked.await else { return Marks::new() };
    for place in places {
        // What is not there yet is found by looking.
        let _ = directories.map(|directories| directories.watch(&place));
    }
    marks
}

fn marked(path: PathBuf) -> (PathBuf, Option<Mark>) {
    let mark = Mark::of(&path);
    (path, mark)
}

/// The configuration, what it names where it runs, and what it names where it may have been refused.
fn names(live: &Live) -> BTreeSet<PathBuf> {
    let mut names: BTreeSet<_> = live.running().loaded.files().map(Path::to_owned).collect();
    // What was started without a file still serves certificates from files.
    let Some(config) = live.config.clone() else { return names };
    if let Ok(source) = load::read(&config) {
        let base = config.parent().unwrap_or(Path::new(""));
        if let Ok((config, _)) = config::parse(&source.text, base) {
            names.extend(load::named(&config).map(Path::to_owned));
        }
    }
    names.insert(config);
    names
}

/// The directories where a change of this file shows: where it is named and, behind links, where it is.
fn places(path: &Path) -> impl Iterator<Item = PathBuf> {
    let real = fs::canonicalize(path).ok();
    let parent =
        |path: &Path| path.parent().map(|parent| if parent == Path::new("") { ".".into() } else { parent.into() });
    [parent(path), real.as_deref().and_then(parent)].into_iter().flatten()
}

impl Mark {
    fn of(path: &Path) -> Option<Self> {
        let metadata = fs::metadata(path).ok()?;
        Some(Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        })
    }

    fn is_after(&self, moment: SystemTime) -> bool {
        let (seconds, nanos) = self.changed;
        let since = Duration::new(u64::try_from(seconds).unwrap_or(0), u32::try_from(nanos).unwrap_or(0));
        UNIX_EPOCH + since >= moment
    }
}
