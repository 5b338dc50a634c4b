use super::*;

const PROGRAM: &str = "/lib/tollgate-runtime";

fn with(text: &str) -> String {
    let document = Document::parse(text).unwrap();
    document.with_runtime(RUNTIME, Path::new(PROGRAM)).unwrap().unwrap()
}

fn without(text: &str) -> Option<String> {
    Document::parse(text).unwrap().without_runtime(RUNTIME, Path::new(PROGRAM))
}

const DOCUMENTS: [&str; 9] = [
    "{}",
    "{}\n",
    "{\n}\n",
    "{\"log-level\": \"warn\"}",
    "{\n  \"b\" : 1.0,\n  \"a\":[1e3,\t\"\\u00e9}\"]\n}\n",
    "{\"runtimes\": {\"gvisor\": {\"path\": \"/usr/bin/runsc\"}}}",
    "{\n    \"x\": {\"runtimes\": {}},\n    \"runtimes\": {\n        \"gvisor\": {\"path\": \"/r\", \"runtimeArgs\": []},\n        \"kata\": {}\n    },\n    \"y\": null\n}\n",
    "\n\n  { \"a\": \"{\\\"tollgate\\\": 1}\" }",
    "{\"a\":1,\"b\":{\"tollgate\":2}}",
];

#[test]
fn the_runtime_comes_and_goes_and_everything_else_stays_as_it_was_written() {
    for text in DOCUMENTS {
        let installed = with(text);
        let value: serde_json::Value = serde_json::from_str(&installed).unwrap();
        assert_eq!(value["runtimes"][RUNTIME]["path"], PROGRAM, "{installed}");
        let again = Document::parse(&installed).unwrap();
        assert_eq!(again.with_runtime(RUNTIME, Path::new(PROGRAM)).unwrap(), None, "{installed}");
        let mut expected: serde_json::Value = serde_json::from_str(text).unwrap();
        expected["runtimes"][RUNTIME] = serde_json::json!({ "path": PROGRAM });
        assert_eq!(value, expected, "{installed}");
        let undone = without(&installed).unwrap();
        if undone != text {
            // An empty object has no line for its member.
            let squeezed = |text: &str| text.split_whitespace().collect::<String>();
            assert_eq!((squeezed(&undone), squeezed(text)), ("{}".to_owned(), "{}".to_owned()));
        }
    }
}

#[test]
fn a_runtime_that_others_have_put_before_or_after_ours_stays() {
    let installed =
        "{\"runtimes\": {\"a\": {}, \"tollgate\": {\"path\": \"/lib/tollgate-runtime\"}}}";
    assert_eq!(without(installed).unwrap(), "{\"runtimes\": {\"a\": {}}}");
    let installed = "{\"runtimes\":{\"tollgate\":{\"path\":\"/lib/tollgate-runtime\"} , \"a\":{}}}";
    assert_eq!(without(installed).unwrap(), "{\"runtimes\":{ \"a\":{}}}");
    let foreign = "{\"runtimes\": {\"tollgate\": {\"path\": \"/elsewhere\"}}}";
    assert_eq!(without(foreign), None);
    assert_eq!(without("{}"), None);
}

#[test]
fn what_is_no_configuration_of_an_engine_is_refused_with_its_place() {
    for (text, place) in [
        ("{\n  \"a\": tru\n}", "line 3 column"),
        ("", "line 1 column 0"),
        ("[]", "line 1 column"),
        ("{\"runtimes\": []}", "column"),
        ("{\"runtimes\": {}, \"runtimes\": {}}", "duplicate field `runtimes`"),
        ("{} trailing", "line 1 column 4"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let places = places(folder.path());
        fs::create_dir_all(places.configuration.parent().unwrap()).unwrap();
        fs::write(&places.configuration, text).unwrap();
        let error = format!("{:#}", install(&places, Some(Path::new("/bin/true"))).unwrap_err());
        assert!(error.contains(place) && error.contains("correct it"), "{text}: {error}");
        assert_eq!(fs::read_to_string(&places.configuration).unwrap(), text);
        assert!(!places.folder.exists());
    }
}

fn places(folder: &Path) -> Places {
    Places {
        configuration: folder.join("etc/docker/daemon.json"),
        folder: folder.join("lib/tollgate"),
    }
}

#[test]
fn installing_twice_is_installing_once_and_uninstalling_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let places = places(folder.path());
    let real = Path::new("/bin/true");
    assert_eq!(install(&places, Some(real)).unwrap(), Done::Changed);
    let first = fs::read_to_string(&places.configuration).unwrap();
    assert_eq!(install(&places, Some(real)).unwrap(), Done::Nothing);
    assert_eq!(fs::read_to_string(&places.configuration).unwrap(), first);
    let recorded = fs::read_link(places.folder.join(super::super::REAL)).unwrap();
    assert_eq!(recorded, fs::canonicalize(real).unwrap());
    let program = fs::read_link(places.folder.join(super::super::NAME)).unwrap();
    assert_eq!(program, std::env::current_exe().unwrap());
    assert_eq!(uninstall(&places).unwrap(), Done::Changed);
    assert!(!places.configuration.exists() && !places.folder.exists());
    assert_eq!(uninstall(&places).unwrap(), Done::Nothing);
}

#[test]
fn what_stood_in_the_configuration_is_kept_beside_it_with_its_rights_until_it_is_there_again() {
    let folder = tempfile::tempdir().unwrap();
    let places = places(folder.path());
    let text = "{\n\t\"log-level\": \"warn\"\n}\n";
    fs::create_dir_all(places.configuration.parent().unwrap()).unwrap();
    fs::write(&places.configuration, text).unwrap();
    fs::set_permissions(&places.configuration, fs::Permissions::from_mode(0o640)).unwrap();
    install(&places, Some(Path::new("/bin/true"))).unwrap();
    let kept = backup(&places.configuration);
    assert_eq!(fs::read_to_string(&kept).unwrap(), text);
    for file in [&places.configuration, &kept] {
        assert_eq!(fs::metadata(file).unwrap().permissions().mode() & 0o777, 0o640);
    }
    uninstall(&places).unwrap();
    assert_eq!(fs::read_to_string(&places.configuration).unwrap(), text);
    assert!(!kept.exists());
}

#[test]
fn a_runtime_that_is_in_use_or_would_be_itself_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let places = places(folder.path());
    install(&places, Some(Path::new("/bin/true"))).unwrap();
    let text = fs::read_to_string(&places.configuration).unwrap();
    let default = text.replacen('{', "{\"default-runtime\": \"tollgate\",", 1);
    fs::write(&places.configuration, &default).unwrap();
    let error = uninstall(&places).unwrap_err().to_string();
    assert!(error.contains("default-runtime") && error.contains("name another"), "{error}");
    assert!(places.folder.exists());
    let own = std::env::current_exe().unwrap();
    let error = install(&places, Some(&own)).unwrap_err().to_string();
    assert!(error.contains("which is Tollgate itself"), "{error}");
    let other = text.replace("tollgate-runtime", "something-else");
    fs::write(&places.configuration, other).unwrap();
    let error = format!("{:#}", install(&places, Some(Path::new("/bin/true"))).unwrap_err());
    assert!(error.contains("another runtime `tollgate`"), "{error}");
}
