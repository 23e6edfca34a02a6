//! A login at a database server of the `MySQL` family, and what it says about its role.

use std::net::SocketAddr;

use mysql_async::{Conn, Error, Opts, OptsBuilder, Value, prelude::Queryable as _};
use tokio::task::JoinSet;
use zeroize::Zeroizing;

use super::Failure;
use crate::{config::DatabaseRole, metrics::CheckResult};

/// The server's numbers for a login that is not allowed: access denied, to a database, by the host, with no password.
const LOGIN_ERRORS: [u16; 5] = [1044, 1045, 1130, 1698, 3118];

#[derive(Debug)]
pub struct Mysql {
    login: Login,
    role: Option<DatabaseRole>,
}

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
            // Otherwise it would ask for these.
            .max_allowed_packet(Some(1 << 20))
            .wait_timeout(Some(60))
            .stmt_cache_size(0);
        Self { login: Login(login.into()), role }
    }

    /// In a task of its own: the client trusts the server to keep to the protocol, and a panic must not end the checks.
    pub async fn ask(&self) -> Result<(), Failure> {
        let mut task = JoinSet::new();
        task.spawn(exchange(self.login.0.clone(), self.role));
        match task.join_next().await {
            Some(Ok(answer)) => answer,
            _ => Err(Failure::new(CheckResult::Answer, "the server does not keep to the protocol")),
        }
    }
}

async fn exchange(login: Opts, role: Option<DatabaseRole>) -> Result<(), Failure> {
    let mut connection = Conn::new(login).await.map_err(|error| failed(&error))?;
    let verdict = match role {
        None => Ok(()),
        Some(role) => {
            let read_only = connection.query_first::<Value, _>("SELECT @@read_only").await;
            let read_only = read_only.map_err(|error| failed(&error))?;
            judge(role, read_only.as_ref())
        }
    };
    // A polite goodbye: a server counts those who leave without, and may shut them out.
    connection.disconnect().await.map_err(|error| failed(&error))?;
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
            Failure::new(result, format!("mysql error {}: {}", error.code, error.message.escape_debug()))
        }
        error => {
            let words = error.to_string();
            Failure::new(CheckResult::Answer, format!("mysql: {}", words.escape_debug()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
