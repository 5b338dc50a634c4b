use std::path::Path;

use super::*;
use crate::agent::AgentName;
use crate::config::Config;
use crate::http::{RequestHead, RequestPath};
use crate::net::{Destination, Host, Scheme};
use crate::policy::{SourceSpec, Verdict, decide};

fn config(source: &str, inject: &str) -> Config {
    let text = format!(
        "[[agent]]\nname = \"a\"\ndefault = \"allow\"\n[[credential]]\nname = \"token\"\nsource = {source}\n\
         hosts = [\"a.example.com\"]\nagents = [\"a\"]\ninject = {inject}\n"
    );
    Config::parse(Path::new("t.toml"), &text).unwrap_or_else(|errors| panic!("{errors}"))
}

const BEARER: &str = r#"{ header = "Authorization", format = "Bearer {value}" }"#;

fn permit(config: &Config, host: &str) -> Permit {
    let head = RequestHead {
        method: "GET".to_owned(),
        destination: Destination {
            scheme: Scheme::Https,
            host: Host::parse(host).unwrap(),
            port: 443,
        },
        path: RequestPath::parse("/").unwrap(),
    };
    match decide(
        &config.policy,
        &AgentName::parse("a").unwrap(),
        &head,
        std::time::SystemTime::UNIX_EPOCH,
    ) {
        Verdict::Allow(permit) => permit,
        other => panic!("{other:?}"),
    }
}

fn load(config: &Config, value: Option<&str>) -> Result<Vault, String> {
    let value = value.map(str::to_owned);
    Vault::load(&config.policy, &|_| value.clone().map(OsString::from))
        .map_err(|errors| errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))
}

#[test]
fn a_file_is_read_without_its_line_end_and_overwrites_every_value_of_the_agent() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("secret");
    std::fs::write(&path, "s3cr3t\r\n\n").unwrap();
    let config = config(&format!("{{ file = {path:?} }}"), BEARER);
    let vault = load(&config, None).unwrap_or_else(|error| panic!("{error}"));
    let mut headers = HeaderMap::new();
    headers.append("authorization", HeaderValue::from_static("mine"));
    headers.append("authorization", HeaderValue::from_static("mine too"));
    let injected = vault.authorize(&permit(&config, "a.example.com"), &mut headers).unwrap();
    assert_eq!(injected.iter().map(CredentialName::as_str).collect::<Vec<_>>(), ["token"]);
    let values: Vec<&HeaderValue> = headers.get_all("authorization").iter().collect();
    assert_eq!(values, ["Bearer s3cr3t"]);
    assert!(values[0].is_sensitive());
    assert!(!format!("{headers:?}").contains("s3cr3t"));
}

#[test]
fn a_request_to_another_host_gets_nothing() {
    let config = config("{ env = \"TOKEN\" }", BEARER);
    let vault = load(&config, Some("s3cr3t")).unwrap_or_else(|error| panic!("{error}"));
    let mut headers = HeaderMap::new();
    assert!(vault.authorize(&permit(&config, "b.example.com"), &mut headers).unwrap().is_empty());
    assert!(headers.is_empty());
}

#[test]
fn a_permit_of_another_policy_than_the_vaults_is_refused() {
    let config = config("{ env = \"TOKEN\" }", BEARER);
    let empty = Vault { credentials: HashMap::new() };
    let mut headers = HeaderMap::new();
    let error = empty.authorize(&permit(&config, "a.example.com"), &mut headers).unwrap_err();
    assert_eq!(error.credential().as_str(), "token");
    assert!(headers.is_empty());
}

#[test]
fn what_cannot_be_read_or_injected_is_an_error_that_names_credential_place_and_remedy() {
    let directory = tempfile::tempdir().unwrap();
    let large = directory.path().join("large");
    std::fs::write(&large, "x".repeat(20_000)).unwrap();
    let missing = directory.path().join("missing");
    let rows = [
        ("{ env = \"TOKEN\" }".to_owned(), None, vec!["`token`", "TOKEN", "set it"]),
        ("{ env = \"TOKEN\" }".to_owned(), Some("\n"), vec!["`token`", "TOKEN", "is empty"]),
        ("{ env = \"TOKEN\" }".to_owned(), Some("s3cr3t\nx"), vec!["`token`", "one line"]),
        ("{ env = \"TOKEN\" }".to_owned(), Some("s3cr3t\u{7}"), vec!["`token`", "one line"]),
        (format!("{{ file = {large:?} }}"), None, vec!["`token`", "large", "nothing else"]),
    ];
    for (source, value, words) in rows {
        let Err(error) = load(&config(&source, BEARER), value) else { panic!("{source}") };
        for word in words {
            assert!(error.contains(word), "{error}");
        }
        assert!(!error.contains("s3cr3t"), "{error}");
    }
    let spec = SourceSpec::File(missing.clone());
    let Err(error) = source::read(&permit_name(), &spec, &|_| None) else {
        panic!("it is missing")
    };
    assert!(error.to_string().contains(&missing.display().to_string()), "{error}");
}

fn permit_name() -> CredentialName {
    CredentialName::parse("token").unwrap()
}
