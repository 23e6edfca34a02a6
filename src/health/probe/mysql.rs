//! A login at a database server of the `MySQL` family, and what it says about its role.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    pin::Pin,
    task::{Context, Poll},
    thread,
    time::Duration,
};

use mysql_async::{Conn, Error, Opts, OptsBuilder, Value, prelude::Queryable as _};
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use zeroize::Zeroizing;

use super::{Failure, Progress, words};
use crate::{config::DatabaseRole, metrics::CheckResult};

/// The server's numbers for a login that is not allowed: access denied, to a database, by the host, with no password.
const LOGIN_ERRORS: [u16; 5] = [1044, 1045, 1130, 1698, 3118];

#[derive(Debug)]
pub struct Mysql {
    login: Login,
    role: Option<DatabaseRole>,
}

/// How long a server may take to close when it was told goodbye.
const GOODBYE: Duration = Duration::from_millis(100);

/// After this a peer that is gone without a word is noticed.
const KEEPALIVE: Duration = Duration::from_secs(10);

type Exchange = Pin<Box<dyn Future<Output = Result<(), Failure>> + Send>>;

/// An exchange that leaves nothing behind when it is given up.
///
/// A connection of the client crate that is dropped on a runtime spawns a task there, which reads what is pending and says
/// goodbye: at a server that is silent it stays for ever, with its descriptor. Where there is no runtime it only closes.
struct Abandoned(Option<Exchange>);

/// Prints nothing of the password that is in it.
struct Login(Opts);

impl std::fmt::Debug for Login {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Login(..)")
    }
}

impl Mysql {
    pub fn new(target: SocketAddr, user: &str, password: &Zeroizing<String>, role: Option<DatabaseRole>) -> Self {
        let login = OptsBuilder::default()
            .ip_or_hostname(target.ip().to_string())
            .tcp_port(target.port())
            .user(Some(user))
            .pass(Some(password.as_str()))
            // Otherwise the client would ask the server for a unix socket and go there.
            .prefer_socket(false)
            .tcp_keepalive(Some(KEEPALIVE))
            // Otherwise it would ask for these.
            .max_allowed_packet(Some(1 << 20))
            .wait_timeout(Some(60))
            .stmt_cache_size(0);
        Self { login: Login(login.into()), role }
    }

    /// In a task of its own: the client trusts the server to keep to the protocol, and a panic must not end the checks.
    /// `stream` is a connection that something was said on already; without one it makes its own.
    pub async fn ask(&self, progress: &Progress, stream: Option<TcpStream>) -> Result<(), Failure> {
        progress.reach("no login");
        let (login, role) = (self.login.0.clone(), self.role);
        let mut task = JoinSet::new();
        task.spawn(Abandoned(Some(match stream {
            None => Box::pin(exchange(login, role)),
            Some(stream) => Box::pin(exchange_over(stream, login, role)),
        })));
        match task.join_next().await {
            Some(Ok(answer)) => answer,
            _ => Err(Failure::new(CheckResult::Answer, "the server does not keep to the protocol")),
        }
    }
}

impl Future for Abandoned {
    type Output = Result<(), Failure>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let Some(exchange) = &mut self.0 else { return Poll::Pending };
        let verdict = exchange.as_mut().poll(context);
        if verdict.is_ready() {
            self.0 = None;
        }
        verdict
    }
}

impl Drop for Abandoned {
    fn drop(&mut self) {
        let Some(exchange) = self.0.take() else { return };
        // A thread of its own has no runtime. Without one the goodbye is said here, at that price.
        let _ = thread::Builder::new().name("mysql-end".to_owned()).spawn(move || drop(exchange));
    }
}

/// The client crate takes no connection, it makes one: so it comes to a door of this host, and the bytes are carried on.
async fn exchange_over(mut stream: TcpStream, login: Opts, role: Option<DatabaseRole>) -> Result<(), Failure> {
    let here = |error: io::Error| Failure::io("mysql", &error);
    let door = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.map_err(here)?;
    let address = door.local_addr().map_err(here)?;
    let login = OptsBuilder::from_opts(login).ip_or_hostname(address.ip().to_string()).tcp_port(address.port());
    let mut carrying = JoinSet::new();
    carrying.spawn(async move {
        let (mut client, _) = door.accept().await?;
        drop(door);
        copy_bidirectional(&mut client, &mut stream).await
    });
    let verdict = exchange(login.into(), role).await;
    // The goodbye is on its way.
    let _ = tokio::time::timeout(GOODBYE, carrying.join_next()).await;
    verdict
}

async fn exchange(login: Opts, role: Option<DatabaseRole>) -> Result<(), Failure> {
    let mut connection = Conn::new(login).await.map_err(|error| failed(&error))?;
    let verdict = match role {
        None => Ok(()),
        Some(role) => match connection.query_first::<Value, _>("SELECT @@read_only").await {
            Ok(read_only) => judge(role, read_only.as_ref()),
            Err(error) => Err(failed(&error)),
        },
    };
    // A polite goodbye: a server counts those who leave without, and may shut them out. It changes no verdict.
    let _ = connection.disconnect().await;
    verdict
}

fn judge(role: DatabaseRole, read_only: Option<&Value>) -> Result<(), Failure> {
    let can_write = match read_only {
        Some(Value::Int(number)) => *number == 0,
        Some(Value::UInt(number)) => *number == 0,
        Some(Value::Bytes(text)) => text.eq_ignore_ascii_case(b"0") || text.eq_ignore_ascii_case(b"off"),
        _ => return Err(Failure::new(CheckResult::Answer, "the server does not tell @@read_only")),
    };
    match (role, can_write) {
        (DatabaseRole::Primary, true) | (DatabaseRole::Replica, false) => Ok(()),
        (DatabaseRole::Primary, false) => {
            Err(Failure::new(CheckResult::WrongRole, "read_only is on: a replica, and a primary is wanted"))
        }
        (DatabaseRole::Replica, true) => {
            Err(Failure::new(CheckResult::WrongRole, "read_only is off: a primary, and a replica is wanted"))
        }
    }
}

fn failed(error: &Error) -> Failure {
    match error {
        Error::Io(mysql_async::IoError::Io(error)) => Failure::io("mysql", error),
        Error::Server(error) => {
            let result = if LOGIN_ERRORS.contains(&error.code) { CheckResult::Login } else { CheckResult::Answer };
            Failure::new(result, format!("mysql error {}: {}", error.code, words(&error.message)))
        }
        error => Failure::new(CheckResult::Answer, format!("mysql: {}", words(&error.to_string()))),
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read as _, Write as _},
        net::{TcpListener, TcpStream},
        sync::mpsc,
    };

    use super::*;

    /// Protocol 10, a nonce of zeros, native passwords.
    fn greeting() -> Vec<u8> {
        let mut packet = b"\x0a8.0.0\0".to_vec();
        packet.extend(1_u32.to_le_bytes());
        packet.extend([b'n'; 8]);
        // Capabilities 4.1, secure connection, plugin names; a character set; autocommit.
        packet.extend([0, 0x00, 0x82, 33, 2, 0, 0x08, 0x00, 21]);
        packet.extend([0; 10]);
        packet.extend([b'n'; 12]);
        packet.extend(b"\0mysql_native_password\0");
        packet
    }

    fn send(mut stream: &TcpStream, number: u8, packet: &[u8]) {
        let [low, high, ..] = packet.len().to_le_bytes();
        let _ = stream.write_all(&[&[low, high, 0, number], packet].concat());
    }

    /// The body of one packet of the client's.
    fn receive(mut stream: &TcpStream) -> Option<Vec<u8>> {
        let mut head = [0; 4];
        stream.read_exact(&mut head).ok()?;
        let mut body = vec![0; usize::from(head[0]) | usize::from(head[1]) << 8];
        stream.read_exact(&mut body).ok()?;
        Some(body)
    }

    /// A server that lets everyone in and answers the question with `answer`. It sends the connection when that is done.
    fn server(answer: fn(&TcpStream)) -> (SocketAddr, mpsc::Receiver<TcpStream>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (sender, asked) = mpsc::channel();
        thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            send(&stream, 0, &greeting());
            receive(&stream).unwrap();
            send(&stream, 2, &[0, 0, 0, 2, 0, 0, 0]);
            let question = receive(&stream).unwrap();
            assert!(question.ends_with(b"SELECT @@read_only"), "{question:?}");
            answer(&stream);
            let _ = sender.send(stream);
        });
        (address, asked)
    }

    async fn asked(address: SocketAddr, limit: Duration) -> Option<Result<(), Failure>> {
        let mysql = Mysql::new(address, "check", &Zeroizing::default(), Some(DatabaseRole::Primary));
        let progress = Progress::default();
        tokio::time::timeout(limit, mysql.ask(&progress, None)).await.ok()
    }

    /// One column, and no row yet.
    fn begin_of_an_answer(stream: &TcpStream) {
        send(stream, 1, &[1]);
        let name = b"@@read_only";
        let mut column = b"\x03def\0\0\0".to_vec();
        column.extend([b"\x0b", &name[..], &[0, 0x0c, 63, 0, 1, 0, 0, 0, 8, 0, 0, 0, 0, 0]].concat());
        send(stream, 2, &column);
        send(stream, 3, &[0xfe, 0, 0, 2, 0]);
    }

    #[test]
    fn a_check_that_is_given_up_leaves_no_connection_behind() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (address, connections) = server(begin_of_an_answer);
        runtime.block_on(async {
            assert_eq!(asked(address, Duration::from_millis(500)).await, None);
            // The runtime goes on, and with it whatever was left on it.
            let closed = tokio::task::spawn_blocking(move || {
                let mut stream = connections.recv_timeout(Duration::from_secs(5)).unwrap();
                stream.read(&mut [0; 64]).map_err(|error| error.kind())
            });
            assert_eq!(closed.await.unwrap(), Ok(0), "it is still there");
            assert_eq!(tokio::runtime::Handle::current().metrics().num_alive_tasks(), 0);
        });
    }

    /// It is a primary.
    fn whole_answer(stream: &TcpStream) {
        begin_of_an_answer(stream);
        send(stream, 4, b"\x010");
        send(stream, 5, &[0xfe, 0, 0, 2, 0]);
    }

    #[test]
    fn an_answer_that_is_complete_is_a_verdict() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (address, _connections) = server(whole_answer);
        runtime.block_on(async {
            assert_eq!(asked(address, Duration::from_secs(5)).await, Some(Ok(())));
        });
    }

    /// On which something was said already.
    #[test]
    fn p9_a_connection_that_is_there_is_used_and_said_goodbye_on() {
        const QUIT: u8 = 1;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (address, connections) = server(whole_answer);
        runtime.block_on(async {
            let stream = tokio::net::TcpStream::connect(address).await.unwrap();
            // Nobody listens there.
            let mysql =
                Mysql::new(([127, 0, 0, 1], 9).into(), "check", &Zeroizing::default(), Some(DatabaseRole::Primary));
            let progress = Progress::default();
            assert_eq!(mysql.ask(&progress, Some(stream)).await, Ok(()));
            let goodbye = tokio::task::spawn_blocking(move || {
                let stream = connections.recv_timeout(Duration::from_secs(5)).unwrap();
                (receive(&stream), receive(&stream))
            });
            assert_eq!(goodbye.await.unwrap(), (Some(vec![QUIT]), None), "and then the end");
            assert_eq!(tokio::runtime::Handle::current().metrics().num_alive_tasks(), 0);
        });
    }

    #[test]
    fn o6_a_login_is_not_printed() {
        let password = Zeroizing::new("hunter2".to_owned());
        let mysql = Mysql::new(([127, 0, 0, 1], 3306).into(), "check", &password, None);
        assert!(!format!("{mysql:?}").contains("hunter2"));
    }

    #[test]
    fn a_role_is_what_read_only_says() {
        for (value, can_write) in [
            (Value::Int(0), true),
            (Value::UInt(1), false),
            (Value::Bytes(b"0".to_vec()), true),
            (Value::Bytes(b"OFF".to_vec()), true),
            (Value::Bytes(b"1".to_vec()), false),
            (Value::Bytes(b"READ_ONLY".to_vec()), false),
        ] {
            assert_eq!(judge(DatabaseRole::Primary, Some(&value)).is_ok(), can_write, "{value:?}");
            assert_eq!(judge(DatabaseRole::Replica, Some(&value)).is_ok(), !can_write, "{value:?}");
        }
        for role in [DatabaseRole::Primary, DatabaseRole::Replica] {
            assert!(judge(role, Some(&Value::NULL)).is_err() && judge(role, None).is_err());
        }
    }
}
