//! A small HTTP client for the admin address, and what `/metrics` says.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

#[derive(Debug)]
pub struct Response {
    pub status: u16,
    /// Everything before the empty line, in lower case.
    pub head: String,
    pub body: String,
}

/// One GET on its own connection. A `Host` is added unless the headers have one.
pub fn get(address: SocketAddr, path: &str, headers: &[(&str, &str)]) -> std::io::Result<Response> {
    get_over(TcpStream::connect(address)?, path, headers)
}

/// As [`get`], on a connection that was made already.
pub fn get_over(mut stream: TcpStream, path: &str, headers: &[(&str, &str)]) -> std::io::Result<Response> {
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    let mut request = format!("GET {path} HTTP/1.1\r\nConnection: close\r\n");
    if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
        request.extend(["Host: ", &stream.peer_addr()?.to_string(), "\r\n"]);
    }
    for (name, value) in headers {
        request.extend([name, ": ", value, "\r\n"]);
    }
    stream.write_all(format!("{request}\r\n").as_bytes())?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    parse(&String::from_utf8_lossy(&answer))
        .ok_or_else(|| std::io::Error::new(std::io::ErrorKind::InvalidData, "not an HTTP response"))
}

fn parse(answer: &str) -> Option<Response> {
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    let head = head.to_ascii_lowercase();
    let body = if head.contains("transfer-encoding: chunked") { unchunk(body)? } else { body.to_owned() };
    Some(Response { status, head, body })
}

fn unchunk(mut rest: &str) -> Option<String> {
    let mut body = String::new();
    loop {
        let (size, after) = rest.split_once("\r\n")?;
        let size = usize::from_str_radix(size.split(';').next()?.trim(), 16).ok()?;
        if size == 0 {
            return Some(body);
        }
        body += after.get(..size)?;
        rest = after.get(size..)?.strip_prefix("\r\n")?;
    }
}

#[derive(Debug, Clone)]
pub struct Series {
    pub name: String,
    pub labels: Vec<(String, String)>,
    pub value: f64,
}

impl Series {
    pub fn label(&self, key: &str) -> Option<&str> {
        self.labels.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str())
    }
}

#[derive(Debug, Clone)]
pub struct Metrics(pub Vec<Series>);

impl Metrics {
    pub fn scrape(admin: SocketAddr) -> Self {
        let response = get(admin, "/metrics", &[]).expect("the admin address answers");
        assert_eq!(response.status, 200, "{}\n{}", response.head, response.body);
        Self::parse(&response.body)
    }

    pub fn parse(text: &str) -> Self {
        Self(text.lines().filter(|l| !l.is_empty() && !l.starts_with('#')).map(series).collect())
    }

    /// The sum over every series of this name that has these labels; one has to be there, since all start at 0.
    #[track_caller]
    pub fn value(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let found: Vec<f64> = self.select(name, labels).map(|s| s.value).collect();
        assert!(
            !found.is_empty(),
            "no series {name} {labels:?}; of this name: {:?}",
            self.select(name, &[]).collect::<Vec<_>>()
        );
        found.iter().sum()
    }

    /// As [`Self::value`], for what is counted.
    #[track_caller]
    pub fn count(&self, name: &str, labels: &[(&str, &str)]) -> u64 {
        self.value(name, labels) as u64
    }

    /// Connections that ended so, over all listeners.
    #[track_caller]
    pub fn outcome(&self, outcome: &str) -> u64 {
        self.count("sluicegate_connections_closed_total", &[("outcome", outcome)])
    }

    pub fn select<'a>(&'a self, name: &'a str, labels: &'a [(&'a str, &'a str)]) -> impl Iterator<Item = &'a Series> {
        self.0.iter().filter(move |s| s.name == name && labels.iter().all(|(k, v)| s.label(k) == Some(v)))
    }

    /// Names and labels without values, sorted.
    pub fn shape(&self) -> Vec<String> {
        let mut shape: Vec<String> = self.0.iter().map(|s| format!("{} {:?}", s.name, s.labels)).collect();
        shape.sort();
        shape
    }
}

fn series(line: &str) -> Series {
    let (id, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("not a sample: {line}"));
    let value = value.parse().unwrap_or_else(|_| panic!("not a number: {line}"));
    let Some((name, labels)) = id.split_once('{') else {
        return Series { name: id.to_owned(), labels: Vec::new(), value };
    };
    let labels = labels.strip_suffix('}').unwrap_or_else(|| panic!("labels without an end: {line}"));
    let pairs = labels.split("\",").filter(|pair| !pair.is_empty()).map(|pair| {
        let (key, value) = pair.split_once("=\"").unwrap_or_else(|| panic!("not a label: {line}"));
        (key.trim().to_owned(), value.trim_end_matches('"').to_owned())
    });
    Series { name: name.to_owned(), labels: pairs.collect(), value }
}

#[test]
fn a_sample_is_read_with_its_labels() {
    let metrics = Metrics::parse("# HELP a b\na{x=\"1\",y=\"a,b\"} 2\na{x=\"2\",y=\"\"} 3\nb 4.5\n");
    assert_eq!(metrics.count("a", &[]), 5);
    assert_eq!(metrics.count("a", &[("x", "1"), ("y", "a,b")]), 2);
    assert!((metrics.value("b", &[]) - 4.5).abs() < f64::EPSILON);
}

#[test]
fn a_chunked_answer_is_put_together() {
    let answer = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n";
    assert_eq!(parse(answer).unwrap().body, "abcde");
}
