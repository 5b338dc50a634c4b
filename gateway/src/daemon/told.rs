//! Which mount namespaces of a workload have been told of the CA.
//!
//! A container has one, which `exec` and health checks join; a cgroup may have several, or none but the host's, which
//! is never touched. A namespace is told once for each CA and each root that it has: the first process of a container
//! enters its namespace before it has its root. Where the search for its stores was cut short, as it is on a machine
//! that is busy, it is told again, a few times.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::unistd::Pid;
use rustix::fs::{AtFlags, CWD, StatxFlags};
use tokio::task::JoinHandle;

use crate::admin::TrustReport;
use crate::capture::{CgroupRoot, HeldProcess};
use crate::trust::{self, Anchors, InstallError};

/// What one workload's namespaces know.
#[derive(Default)]
pub(super) struct Told {
    homes: Homes,
    telling: Option<JoinHandle<Homes>>,
    findings: Findings,
    /// Since it is served.
    since: Option<Instant>,
}

type Homes = BTreeMap<Home, Witness>;

/// Where a process finds its files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Home {
    /// Inode number of the mount namespace, which another one may have when this one is gone.
    namespace: u64,
    root: Root,
}

/// Device and inode number of a root directory. The mount would tell more, and is another one in each namespace.
type Root = (u32, u32, u64);

/// What was found in the namespaces that were told, for whoever asks meanwhile.
type Findings = Arc<Mutex<Vec<Finding>>>;

/// How many stores there are, and why some are not covered.
#[derive(Debug, Clone, Default)]
struct Finding {
    stores: usize,
    why: Vec<String>,
    /// Whether there may be stores that nobody has looked at.
    is_cut_short: bool,
}

/// A process that keeps a namespace's number from being given to another.
struct Witness {
    pid: Pid,
    started: u64,
    anchors: Arc<Anchors>,
    finding: Finding,
    /// How many searches for these anchors were cut short.
    cut_short: u32,
    told: Instant,
}

impl Witness {
    /// Whether there is nothing more to tell it.
    fn knows(&self, anchors: &Arc<Anchors>, now: Instant) -> bool {
        let is_due = self.finding.is_cut_short
            && self.cut_short < SEARCHES_MAX
            && now.saturating_duration_since(self.told) >= SEARCH_AGAIN_AFTER * self.cut_short;
        Arc::ptr_eq(&self.anchors, anchors) && !is_due
    }

    /// How many searches for these anchors were cut short, with one that found this.
    fn cut_short_with(former: Option<&Self>, anchors: &Arc<Anchors>, finding: &Finding) -> u32 {
        let former = former.filter(|former| Arc::ptr_eq(&former.anchors, anchors));
        former.map_or(0, |former| former.cut_short) + u32::from(finding.is_cut_short)
    }
}

/// How often a home is searched whose search is cut short each time: it may have more than can be looked at.
const SEARCHES_MAX: u32 = 4;
/// Between the first search that was cut short and the next one; once more as long before each further one.
const SEARCH_AGAIN_AFTER: Duration = Duration::from_secs(5);

/// How long a workload is looked at as often as possible: it gets its root, and its first clients.
const SETTLES_IN: Duration = Duration::from_secs(5);
/// In how many namespaces clients are told at one look: a workload can make any number.
const HOMES_MAX: usize = 32;

impl Told {
    /// Whether to look again at the next opportunity.
    pub(super) fn is_settling(&self) -> bool {
        self.since.is_none_or(|since| since.elapsed() < SETTLES_IN)
    }

    /// What is known of the trust of its clients.
    pub(super) fn report(&self) -> TrustReport {
        let findings = self.findings.lock().unwrap_or_else(PoisonError::into_inner);
        let why: Vec<String> = findings.iter().flat_map(|it| it.why.iter().cloned()).collect();
        match (findings.len(), why.is_empty()) {
            (0, _) => TrustReport::Unknown,
            (_, true) => TrustReport::Covered { stores: findings.iter().map(|it| it.stores).sum() },
            (_, false) => TrustReport::Incomplete { why },
        }
    }

    /// Tells the namespaces of a cgroup that do not know `anchors` yet. Nobody waits for them.
    pub(super) async fn look(&mut self, root: &CgroupRoot, cgroup: &Path, anchors: &Arc<Anchors>) {
        self.since.get_or_insert_with(Instant::now);
        let is_settling = self.is_settling();
        match self.telling.take() {
            Some(telling) if !telling.is_finished() => {
                self.telling = Some(telling);
                return;
            }
            Some(telling) => match telling.await {
                Ok(homes) => self.homes = homes,
                Err(error) => tracing::error!(%error, "the container's trust was not looked at"),
            },
            None => {}
        }
        let Ok(cgroup) = root.open(cgroup) else { return };
        let (homes, anchors) = (std::mem::take(&mut self.homes), Arc::clone(anchors));
        let findings = Arc::clone(&self.findings);
        self.telling = Some(tokio::task::spawn_blocking(move || {
            let processes = cgroup.processes().unwrap_or_default();
            let homes = tell(homes, processes, &anchors, is_settling);
            let found = homes.values().map(|witness| witness.finding.clone()).collect();
            *findings.lock().unwrap_or_else(PoisonError::into_inner) = found;
            homes
        }));
    }
}

/// `is_settling`: who has a namespace of its own and the host's root may be about to get another.
fn tell(mut homes: Homes, processes: Vec<Pid>, anchors: &Arc<Anchors>, is_settling: bool) -> Homes {
    let hosts = [namespace_of("self"), namespace_of("1")];
    let hosts_roots = [root_of("self"), root_of("1")];
    homes.retain(|home, witness| look_at(witness.pid) == Some((*home, witness.started)));
    let mut told = 0;
    for pid in processes {
        let Some((home, started)) = look_at(pid) else { continue };
        let former = homes.get(&home);
        let knows = former.is_some_and(|witness| witness.knows(anchors, Instant::now()));
        let may_change = is_settling && hosts_roots.contains(&Some(home.root));
        if knows || may_change || hosts.contains(&Some(home.namespace)) || told == HOMES_MAX {
            continue;
        }
        told += 1;
        if let Some(finding) = install(pid, anchors)
            && look_at(pid) == Some((home, started))
        {
            let cut_short = Witness::cut_short_with(homes.get(&home), anchors, &finding);
            let (anchors, told) = (Arc::clone(anchors), Instant::now());
            homes.insert(home, Witness { pid, started, anchors, finding, cut_short, told });
        }
    }
    homes
}

/// Where a process is, and when it started; none when it has ended.
fn look_at(pid: Pid) -> Option<(Home, u64)> {
    let started = HeldProcess::of(pid)?.started()?;
    let namespace = namespace_of(&pid.to_string())?;
    let home = Home { namespace, root: root_of(&pid.to_string())? };
    (HeldProcess::of(pid)?.started()? == started).then_some((home, started))
}

fn root_of(process: &str) -> Option<Root> {
    // Whoever serves a file system of its own is not asked.
    let flags = AtFlags::STATX_DONT_SYNC;
    let path = format!("/proc/{process}/root");
    let root = rustix::fs::statx(CWD, path, flags, StatxFlags::INO).ok()?;
    Some((root.stx_dev_major, root.stx_dev_minor, root.stx_ino))
}

fn namespace_of(process: &str) -> Option<u64> {
    Some(fs::metadata(format!("/proc/{process}/ns/mnt")).ok()?.ino())
}

/// Makes the clients beside a process trust the CA; none when there is something more to try. What cannot be covered is
/// said; the workload is governed anyway.
fn install(pid: Pid, anchors: &Anchors) -> Option<Finding> {
    match trust::install(pid, anchors) {
        Ok(report) => {
            let uncovered = report.stores.iter().filter_map(|store| {
                Some(format!("{}: {}", store.path.display(), store.problem.as_ref()?))
            });
            let mut why: Vec<String> = uncovered.collect();
            let uncovered = why.len();
            if !report.is_complete {
                why.push("not everything was looked at".to_owned());
            }
            tracing::info!(
                process = pid.as_raw(),
                stores = report.stores.len(),
                uncovered,
                changed = report.is_changed,
                complete = report.is_complete,
                "the container trusts the CA"
            );
            let is_cut_short = !report.is_complete;
            Some(Finding { stores: report.stores.len(), why, is_cut_short })
        }
        Err(InstallError::Gone { .. }) => None,
        Err(error) => {
            let why = format!("{:#}", anyhow::Error::from(error));
            tracing::warn!(
                process = pid.as_raw(),
                "clients in the container do not trust the CA: {why}"
            );
            Some(Finding { stores: 0, why: vec![why], is_cut_short: false })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::terminate::Authority;

    fn anchors() -> Arc<Anchors> {
        let folder = tempfile::tempdir().unwrap();
        let pem = Authority::open(folder.path()).unwrap().trusted_pem();
        Arc::new(Anchors::new(&pem).unwrap())
    }

    /// What is known after one more search.
    fn searched(former: Option<&Witness>, anchors: &Arc<Anchors>, is_cut_short: bool) -> Witness {
        let finding = Finding { stores: 1, why: Vec::new(), is_cut_short };
        let cut_short = Witness::cut_short_with(former, anchors, &finding);
        let (anchors, told) = (Arc::clone(anchors), Instant::now());
        Witness { pid: Pid::this(), started: 0, anchors, finding, cut_short, told }
    }

    #[test]
    fn a_search_that_was_cut_short_is_done_again_a_few_times_and_each_time_later() {
        let anchors = anchors();
        let mut witness = searched(None, &anchors, true);
        let mut searches = 1;
        while !witness.knows(&anchors, witness.told + Duration::from_secs(3_600)) {
            let too_early = SEARCH_AGAIN_AFTER * searches - Duration::from_millis(1);
            assert!(witness.knows(&anchors, witness.told + too_early), "{searches}");
            assert!(!witness.knows(&anchors, witness.told + SEARCH_AGAIN_AFTER * searches));
            witness = searched(Some(&witness), &anchors, true);
            searches += 1;
            assert!(searches <= SEARCHES_MAX, "for ever");
        }
        assert_eq!(searches, SEARCHES_MAX);
    }

    #[test]
    fn a_whole_search_ends_it_and_other_anchors_begin_anew() {
        let (anchors, others) = (anchors(), anchors());
        let cut_short = searched(None, &anchors, true);
        let whole = searched(Some(&cut_short), &anchors, false);
        let later = whole.told + Duration::from_secs(3_600);
        assert!(whole.knows(&anchors, later));
        assert!(!whole.knows(&others, later));
        let anew = searched(Some(&cut_short), &others, true);
        assert_eq!(anew.cut_short, 1);
        assert!(!anew.knows(&others, anew.told + SEARCH_AGAIN_AFTER));
    }
}
