//! From what is written about a pool to what is true.

use std::{
    num::{NonZeroU32, NonZeroUsize},
    time::Duration,
};

use zeroize::Zeroizing;

use super::{
    Backend, Check, CheckHttp, CheckKind, CheckTls, OnAllDown, OnDown, Outlier, Pool, Role, Secret, SendProxy,
    file::{self, Switch},
};
use crate::{
    balance::Balance,
    config::convert::{required, value},
};

const DEFAULT_RETRIES: u32 = 2;
const DEFAULT_SLOW_START: Duration = Duration::from_secs(10);
const DEFAULT_MAX_QUEUED: usize = 1024;
pub const DEFAULT_OUTLIER: Outlier = Outlier { connect_failures: 5, eject: Duration::from_secs(30), max_ejected: 50 };
/// Twice the interval and the timeout are the three seconds after which a dead backend is out (traps S2, S3).
pub const DEFAULT_CHECK: Check = Check {
    kind: CheckKind::Tcp,
    every: Duration::from_secs(1),
    timeout: Duration::from_secs(1),
    rise: 2,
    fall: 2,
    address: None,
    port: None,
};

/// Timeouts of a pool that has none of its own.
#[derive(Debug, Clone, Copy)]
pub struct Timeouts {
    pub connect: Duration,
    pub queue: Duration,
}

/// `None` only where a mistake is noted.
pub fn pool(file: &file::Pool, timeouts: Timeouts) -> Option<Pool> {
    let check = match &file.check {
        None => Some(DEFAULT_CHECK),
        Some(Switch::Off) => None,
        Some(Switch::On(written)) => Some(check(written)?),
    };
    let asks_role = check.as_ref().is_some_and(|check| matches!(check.kind, CheckKind::Mysql { role: Some(_), .. }));
    // A backend of the wrong role is not ill: nobody may stay on it, and nobody may be sent to it.
    let (on_down, on_all_down) =
        if asks_role { (OnDown::Close, OnAllDown::Close) } else { (OnDown::Keep, OnAllDown::Open) };
    let most = file.max_connections.as_ref().map(|most| most.value);
    Some(Pool {
        name: file.name.value.clone(),
        backends: file.backends.iter().map(|one| backend(one, most)).collect::<Option<_>>()?,
        balance: value(&file.balance, Balance::RoundRobin),
        retries: value(&file.retries, DEFAULT_RETRIES),
        connect_timeout: timeouts.connect,
        check,
        outlier: match &file.outlier {
            None => Some(DEFAULT_OUTLIER),
            Some(Switch::Off) => None,
            Some(Switch::On(written)) => Some(outlier(written)),
        },
        slow_start: value(&file.slow_start, DEFAULT_SLOW_START),
        send_proxy: value(&file.send_proxy, SendProxy::Off),
        on_down: value(&file.on_down, on_down),
        on_all_down: value(&file.on_all_down, on_all_down),
        queue: timeouts.queue,
        max_queued: value(&file.max_queued, NonZeroUsize::MIN.saturating_add(DEFAULT_MAX_QUEUED - 1)),
        panic_threshold: value(&file.panic_threshold, 0),
    })
}

fn backend(file: &file::Backend, most: Option<NonZeroUsize>) -> Option<Backend> {
    let address = required(&file.address)?;
    Some(Backend {
        name: required(&file.name).unwrap_or_else(|| address.to_string()),
        address,
        weight: u16::try_from(value(&file.weight, 1)).ok()?,
        role: value(&file.role, Role::Active),
        max_connections: match required(&file.max_connections).or(most) {
            Some(most) => Some(NonZeroU32::try_from(most).ok()?),
            None => None,
        },
    })
}

fn outlier(file: &file::Outlier) -> Outlier {
    Outlier {
        connect_failures: value(&file.connect_failures, DEFAULT_OUTLIER.connect_failures),
        eject: value(&file.eject, DEFAULT_OUTLIER.eject),
        max_ejected: value(&file.max_ejected, DEFAULT_OUTLIER.max_ejected),
    }
}

fn check(file: &file::Check) -> Option<Check> {
    Some(Check {
        kind: kind(file.kind.as_ref()?)?,
        every: value(&file.every, DEFAULT_CHECK.every),
        timeout: value(&file.timeout, DEFAULT_CHECK.timeout),
        rise: value(&file.rise, DEFAULT_CHECK.rise),
        fall: value(&file.fall, DEFAULT_CHECK.fall),
        address: required(&file.address),
        port: required(&file.port).and_then(|port| u16::try_from(port).ok()),
    })
}

fn kind(file: &file::CheckKind) -> Option<CheckKind> {
    Some(match file {
        file::CheckKind::Tcp => CheckKind::Tcp,
        file::CheckKind::Tls(written) => CheckKind::Tls(tls(written)),
        file::CheckKind::Http(written) => CheckKind::Http(CheckHttp {
            method: value(&written.method, "GET".to_owned()),
            path: value(&written.path, "/".to_owned()),
            host: required(&written.host),
            expect: value(&written.expect, 200..=299),
            body: required(&written.body),
            tls: value(&written.is_tls, false).then(|| tls(&written.tls)),
        }),
        file::CheckKind::SendExpect { send, expect } => {
            CheckKind::SendExpect { send: value(send, Vec::new()), expect: required(expect)? }
        }
        file::CheckKind::Mysql { user, password, role } => CheckKind::Mysql {
            user: required(user)?,
            password: value(password, Secret::Inline(Zeroizing::default())),
            role: required(role),
        },
    })
}

fn tls(file: &file::CheckTls) -> CheckTls {
    CheckTls { ca: file.ca.clone(), server_name: required(&file.server_name) }
}
