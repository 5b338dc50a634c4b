//! Many queries at once: none holds up another, and there are only so many.

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::RecordType;

use crate::lab::*;

#[test]
fn queries_in_one_segment_are_answered_by_id_and_a_slow_one_holds_up_no_other() {
    let Some(lab) = Lab::new(RULES) else { return };
    lab.zone.silence("slow.test");
    let asked = ["slow.test", "v4.test", "evil.test", "gone.test", "v6.test"];
    let queries: Vec<Vec<u8>> = asked
        .iter()
        .enumerate()
        .map(|(id, name)| {
            let mut message = query_message(name, RecordType::A);
            message.metadata.id = 100 + u16::try_from(id).unwrap();
            message.to_vec().unwrap()
        })
        .collect();
    let queries: Vec<&[u8]> = queries.iter().map(Vec::as_slice).collect();
    let answers = lab.ask(&[tcp(&queries)]).remove(0);
    assert_eq!(answers.len(), asked.len(), "{answers:#?}");
    for answer in &answers {
        let place = usize::from(answer.metadata.id - 100);
        assert_eq!(answer.queries[0].name().to_ascii(), format!("{}.", asked[place]));
        let expected = match asked[place] {
            "slow.test" => ResponseCode::ServFail,
            "gone.test" => ResponseCode::NXDomain,
            _ => ResponseCode::NoError,
        };
        assert_eq!(code(answer), expected, "{}", asked[place]);
    }
    assert_eq!(answers[4].metadata.id, 100, "the slow one comes last");
    assert_eq!(lab.world.audit_of("dns").len(), asked.len());
}

#[test]
fn a_connection_is_answered_only_so_often_and_the_next_one_again() {
    let Some(lab) = Lab::new(RULES) else { return };
    let question = query("v4.test", RecordType::A);
    let steps = [tcp(&[&question[..]; 200]), tcp(&[&question[..]; 3])];
    let answers = lab.ask(&steps);
    assert_eq!((answers[0].len(), answers[1].len()), (128, 3));
}

#[test]
fn a_flood_is_refused_and_audited_with_its_number_and_ends_when_it_ends() {
    let Some(lab) = Lab::new(RULES) else { return };
    let script = fixture("dns_flood.py").display().to_string();
    let flood = |count: &str| {
        let ended = lab.world.run(AGENT, &[python(), &script, "evil.test", count]);
        let mut lines = ended.ok().lines().map(str::to_owned);
        let codes = lines.next().unwrap_or_default();
        let last = lines.next().unwrap_or_default();
        let more = last.strip_prefix("refused before it was answered again: ");
        (codes, more.unwrap_or_else(|| panic!("{ended:#?}")).parse::<u64>().unwrap())
    };
    // The control: as many as a program asks at its start are answered.
    assert_eq!(flood("400"), ("0:400".to_owned(), 0));
    assert!(lab.records_of("rate_limited").is_empty());
    // Fewer than the kernel lets through at once.
    let (codes, more) = flood("1600");
    let refused = codes.split(' ').find_map(|code| code.strip_prefix("5:"));
    let refused: u64 =
        refused.unwrap_or_else(|| panic!("nothing refused: {codes}")).parse().unwrap();
    let limited = lab.records_of("rate_limited");
    let counts = limited.iter().map(|record| {
        let detail = record["detail"].as_str().unwrap();
        detail.split(' ').next().unwrap().parse::<u64>().unwrap()
    });
    // One record a second, and one at the end; each refusal is counted once.
    assert!((1..60).contains(&limited.len()), "{limited:#?}");
    assert_eq!(counts.sum::<u64>(), refused + more, "{codes} {limited:#?}");
    assert!(limited.iter().all(|record| record["decision"] == "block"), "{limited:#?}");
    assert!(
        lab.zone.names().is_empty(),
        "a denied name is heard by nobody, however often it is asked for"
    );
}
