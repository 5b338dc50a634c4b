use super::*;
use crate::terminate::Authority;

fn anchors() -> Anchors {
    let directory = tempfile::tempdir().expect("directory");
    let pem = Authority::open(directory.path()).expect("authority").ca_pem().to_owned();
    Anchors::new(&pem).expect("anchors")
}

#[test]
fn an_empty_store_gets_the_anchors_and_the_second_time_nothing() {
    let anchors = anchors();
    let store = extended(b"", &anchors).expect("store");
    assert!(has(&store, &anchors));
    assert_eq!(extended(&store, &anchors).expect("store"), store);
    let later = self::anchors();
    let both = extended(&store, &later).expect("store");
    assert!(has(&both, &later) && has(&both, &anchors));
}

#[test]
fn what_another_password_protects_or_nobody_knows_is_refused() {
    let anchors = anchors();
    let mut store = extended(b"", &anchors).expect("store");
    if let Some(last) = store.last_mut() {
        *last ^= 1;
    }
    assert_eq!(extended(&store, &anchors), Err(KeystoreError::Password));
    for unknown in [&b"x"[..], &MAGIC[..], &[0x30, 0x00], &[0x30, 0x82], b"-----BEGIN"] {
        assert_eq!(extended(unknown, &anchors), Err(KeystoreError::Unknown), "{unknown:?}");
    }
}
