//! Certificates that come to their end: a warning in time, and again when it is late (traps T15).

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use tracing::warn;

use crate::{
    running::Live,
    site::{ServedCertificate, Site},
};

/// Between two looks: a certificate that a reload brings is looked at as soon as this.
const LOOK: Duration = Duration::from_mins(1);

const DAY: i64 = 24 * 60 * 60;

/// Between two warnings about one that has expired, in seconds.
const NAGGING: i64 = 60 * 60;

/// How near the end of a certificate is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    /// At most 14 days: whoever renews by hand has two weeks.
    Soon,
    /// At most 3 days: a renewal that should have been automatic was not.
    Close,
    Expired,
}

/// What was said about which certificate. A renewed one has another end, so it is another one.
#[derive(Debug, Default)]
struct Reminders(HashMap<(String, i64), (Stage, i64)>);

/// Warns for as long as the process runs.
pub async fn watch(live: Arc<Live>) {
    let mut reminders = Reminders::default();
    loop {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs().cast_signed());
        remind(&live.running().site, &mut reminders, now);
        tokio::time::sleep(LOOK).await;
    }
}

fn remind(site: &Site, reminders: &mut Reminders, now: i64) {
    reminders.forget_all_but(site);
    for certificate in site.served_certificates() {
        let ServedCertificate { listener, file, names, not_after, .. } = certificate;
        let Some(stage) = reminders.due(file, *not_after, now) else { continue };
        let (names, not_after) = (names.join(", "), written(*not_after));
        match stage {
            Stage::Soon | Stage::Close => {
                let days = (certificate.not_after - now) / DAY;
                warn!(listener, certificate = file, names, not_after, days, "certificate expires soon: renew it");
            }
            Stage::Expired => {
                warn!(listener, certificate = file, names, not_after, "certificate has expired and is still served");
            }
        }
    }
}

impl Reminders {
    /// What is to be said at `now` about the certificate of this file, which ends at `not_after`; both in Unix seconds.
    fn due(&mut self, file: &str, not_after: i64, now: i64) -> Option<Stage> {
        let stage = match not_after - now {
            ..0 => Stage::Expired,
            left if left <= 3 * DAY => Stage::Close,
            left if left <= 14 * DAY => Stage::Soon,
            _ => return None,
        };
        let key = (file.to_owned(), not_after);
        let is_due = match self.0.get(&key) {
            Some((Stage::Expired, at)) => now - at >= NAGGING,
            Some((told, _)) => *told < stage,
            None => true,
        };
        is_due.then(|| {
            self.0.insert(key, (stage, now));
            stage
        })
    }

    fn forget_all_but(&mut self, site: &Site) {
        let is_served =
            |file: &str, end| site.served_certificates().any(|one| one.file == file && one.not_after == end);
        self.0.retain(|(file, end), _| is_served(file, *end));
    }
}

fn written(seconds: i64) -> String {
    jiff::Timestamp::from_second(seconds).map_or_else(|_| seconds.to_string(), |at| at.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    const END: i64 = 1_800_000_000;

    #[test]
    fn t15_once_two_weeks_before_once_three_days_before_and_then_every_hour() {
        let mut reminders = Reminders::default();
        let minutes = (-20 * DAY / 60..=150).map(|minute| minute * 60);
        let said: Vec<_> =
            minutes.filter_map(|after| reminders.due("a.pem", END, END + after).map(|stage| (stage, after))).collect();
        let wanted = [
            (Stage::Soon, -14 * DAY),
            (Stage::Close, -3 * DAY),
            (Stage::Expired, 60),
            (Stage::Expired, 60 + NAGGING),
            (Stage::Expired, 60 + 2 * NAGGING),
        ];
        assert_eq!(said, wanted);
    }

    #[test]
    fn a_renewed_certificate_and_another_file_are_told_apart() {
        let mut reminders = Reminders::default();
        assert_eq!(reminders.due("a.pem", END, END - DAY), Some(Stage::Close));
        assert_eq!(reminders.due("a.pem", END, END - DAY), None);
        assert_eq!(reminders.due("b.pem", END, END - DAY), Some(Stage::Close));
        assert_eq!(reminders.due("a.pem", END + 90 * DAY, END - DAY), None, "renewed");
        assert_eq!(reminders.due("a.pem", END + DAY, END - DAY), Some(Stage::Close), "renewed for two days");
    }
}
