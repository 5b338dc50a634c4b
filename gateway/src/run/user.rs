//! As whom the command runs.

use std::ffi::{CString, OsString};
use std::path::PathBuf;

use anyhow::Context as _;
use nix::unistd::{Gid, Uid, User as Passwd, getgrouplist};
use serde::{Deserialize, Serialize};

/// What was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UserSpec {
    /// The user who called `sudo`, where `sudo` was used; else the caller.
    Caller,
    /// A user by name or number.
    Named(String),
}

/// A user of the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct User {
    /// Login name.
    pub(super) name: String,
    /// User id.
    pub(super) uid: u32,
    /// Primary group.
    pub(super) gid: u32,
    /// All groups.
    pub(super) groups: Vec<u32>,
    /// Home directory.
    pub(super) home: PathBuf,
}

impl UserSpec {
    /// Looks the user up; `None` means that nothing changes.
    pub(super) fn resolve(
        &self,
        environment: &dyn Fn(&str) -> Option<OsString>,
    ) -> anyhow::Result<Option<User>> {
        match self {
            Self::Named(name) => find(name).map(Some),
            Self::Caller => match environment("SUDO_UID") {
                Some(uid) => {
                    let uid = uid.to_string_lossy().into_owned();
                    find(&uid)
                        .context("SUDO_UID names who called sudo; use --user to say it otherwise")
                        .map(Some)
                }
                None => Ok(None),
            },
        }
    }
}

fn find(name: &str) -> anyhow::Result<User> {
    let by_number = name.parse::<u32>().ok().map(Uid::from_raw);
    let found = match by_number {
        Some(uid) => Passwd::from_uid(uid)?,
        None => Passwd::from_name(name)?,
    };
    let passwd = found.with_context(|| format!("there is no user `{name}` on this machine"))?;
    let groups = getgrouplist(&CString::new(passwd.name.as_str())?, passwd.gid)?;
    Ok(User {
        uid: passwd.uid.as_raw(),
        gid: passwd.gid.as_raw(),
        groups: groups.into_iter().map(Gid::as_raw).collect(),
        home: passwd.dir,
        name: passwd.name,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sudo_decides_only_where_no_user_is_named() {
        let nobody = |name: &str| (name == "SUDO_UID").then(|| OsString::from("65534"));
        let none = |_: &str| None;
        assert_eq!(UserSpec::Caller.resolve(&none).unwrap(), None);
        assert_eq!(UserSpec::Caller.resolve(&nobody).unwrap().map(|user| user.uid), Some(65534));
        let root = UserSpec::Named("root".to_owned()).resolve(&nobody).unwrap().unwrap();
        assert_eq!((root.uid, root.name.as_str()), (0, "root"));
        assert!(UserSpec::Named("no-such-user-here".to_owned()).resolve(&none).is_err());
    }
}
