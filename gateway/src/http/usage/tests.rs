use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

fn reader(content_type: &str) -> UsageReader {
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, HeaderValue::from_str(content_type).unwrap());
    UsageReader::new(&headers)
}

fn read(content_type: &str, body: &str) -> UsageReader {
    let mut whole = reader(content_type);
    whole.push(body.as_bytes());
    // However it is cut, it says the same.
    for size in [1, 2, 3, 7] {
        let mut parts = reader(content_type);
        for part in body.as_bytes().chunks(size) {
            parts.push(part);
        }
        assert_eq!((parts.usage, parts.text_bytes), (whole.usage, whole.text_bytes));
        assert_eq!(parts.cost(1000), whole.cost(1000));
    }
    whole
}

const JSON: &str = "application/json; charset=utf-8";
const EVENTS: &str = "text/event-stream";

pub(super) const ANTHROPIC_EVENTS: &str = r#"event: message_start
data: {"type":"message_start","message":{"id":"msg_1","type":"message","role":"assistant","model":"m","content":[],"stop_reason":null,"usage":{"input_tokens":25,"cache_creation_input_tokens":10,"cache_read_input_tokens":100,"cache_creation":{"ephemeral_5m_input_tokens":10},"output_tokens":1,"service_tier":"standard"}}}

event: content_block_start
data: {"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}

event: ping
data: {"type":"ping"}

event: content_block_delta
data: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"Hello, \"usage\":{\"output_tokens\":9999}"}}

event: content_block_stop
data: {"type":"content_block_stop","index":0}

event: message_delta
data: {"type":"message_delta","delta":{"stop_reason":"end_turn","stop_sequence":null},"usage":{"output_tokens":15}}

event: message_stop
data: {"type":"message_stop"}

"#;

const OPENAI_EVENTS: &str = r#"data: {"id":"c","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}],"usage":null}

data: {"id":"c","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":"Hello"},"finish_reason":null}],"usage":null}

data: {"id":"c","object":"chat.completion.chunk","choices":[{"index":0,"delta":{},"finish_reason":"stop"}],"usage":null}

data: {"id":"c","object":"chat.completion.chunk","choices":[],"usage":{"prompt_tokens":19,"completion_tokens":10,"total_tokens":29,"completion_tokens_details":{"reasoning_tokens":7}}}

data: [DONE]

"#;

const RESPONSES_EVENTS: &str = r#"event: response.created
data: {"type":"response.created","response":{"id":"r","status":"in_progress","usage":null}}

event: response.output_text.delta
data: {"type":"response.output_text.delta","item_id":"i","delta":"Hello"}

event: response.completed
data: {"type":"response.completed","response":{"id":"r","status":"completed","output":[{"content":[{"text":"Hello"}]}],"usage":{"input_tokens":36,"input_tokens_details":{"cached_tokens":30},"output_tokens":87,"output_tokens_details":{"reasoning_tokens":64},"total_tokens":123}}}

"#;

#[test]
fn the_usage_of_each_kind_of_answer_is_read() {
    let anthropic = json!({
        "type": "message", "content": [{"type": "tool_use", "input": {"usage": {"input_tokens": 5}}}],
        "usage": {"input_tokens": 2095, "cache_read_input_tokens": 5, "output_tokens": 503,
                  "server_tool_use": {"web_search_requests": 7}},
    });
    let chat = json!({
        "choices": [{"message": {"content": "\"usage\":{\"total_tokens\":1}\\"}}],
        "usage": {"prompt_tokens": 19, "completion_tokens": 10, "total_tokens": 29,
                  "prompt_tokens_details": {"cached_tokens": 9999}},
    });
    let responses =
        json!({"usage": {"input_tokens": 36, "output_tokens": 87, "total_tokens": 123}});
    let embeddings = json!({"data": [{"embedding": [0.1, -2e-3, 5]}],
                            "usage": {"prompt_tokens": 8, "total_tokens": 8}});
    let rows = [
        (JSON, anthropic.to_string(), 2603),
        (JSON, serde_json::to_string_pretty(&chat).unwrap(), 29),
        (JSON, responses.to_string(), 123),
        (JSON, embeddings.to_string(), 8),
        (EVENTS, ANTHROPIC_EVENTS.to_owned(), 150),
        (EVENTS, ANTHROPIC_EVENTS.replace('\n', "\r\n"), 150),
        (EVENTS, ANTHROPIC_EVENTS.replace('\n', "\r"), 150),
        (EVENTS, format!("\u{feff}{ANTHROPIC_EVENTS}"), 150),
        (EVENTS, ANTHROPIC_EVENTS.replace("data: ", "data:"), 150),
        (EVENTS, OPENAI_EVENTS.to_owned(), 29),
        (EVENTS, RESPONSES_EVENTS.to_owned(), 123),
        (
            EVENTS,
            "data: {\"usage\":\ndata: {\"output_tokens\":\r\ndata: 7\r\ndata: }}\n\n".into(),
            7,
        ),
    ];
    for (kind, body, tokens) in rows {
        let reader = read(kind, &body);
        assert_eq!((reader.cost(1_000_000), reader.reported()), (tokens, tokens), "{body}");
    }
}

#[test]
fn what_is_not_said_is_reckoned_as_a_token_for_each_byte() {
    let cut = |text: &str| ANTHROPIC_EVENTS.split_once(text).unwrap().0.to_owned();
    let unfinished = cut("event: content_block_stop");
    // `text_delta` and the text, its escapes included.
    let written =
        "text".len() + "text_deltaHello, ".len() + r#"\"usage\":{\"output_tokens\":9999}"#.len();
    let without_usage = OPENAI_EVENTS.replace("\"usage\":{", "\"other\":{");
    let written_openai = "assistant".len() + "Hello".len() + "stop".len();
    let rows: [(&str, &str, usize); 8] = [
        (EVENTS, &unfinished, 135 + written),
        (EVENTS, &cut("event: content_block_start"), 136),
        (EVENTS, &without_usage, 1000 + written_openai),
        (EVENTS, "data: what is this\n\n", 1000 + 20),
        (JSON, r#"{"object":"list","data":[]}"#, 1000 + 27),
        (JSON, r#"{"usage":{"output_tokens":1.5,"input_tokens":-5}}"#, 1000 + 49),
        (JSON, r#"{"usage":{"input_tokens":99999999999999999999}}"#, 1000 + 47),
        ("application/octet-stream", "\0\0\0\0", 1004),
    ];
    for (kind, body, tokens) in rows {
        assert_eq!(read(kind, body).cost(1000), u64::try_from(tokens).unwrap(), "{body}");
    }
}

#[test]
fn a_compressed_body_is_not_taken_for_a_plain_one() {
    for (coding, is_read) in [("identity", true), ("gzip", false), ("br", false), ("zstd", false)] {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(CONTENT_ENCODING, HeaderValue::from_static(coding));
        let mut reader = UsageReader::new(&headers);
        let body = br#"{"usage":{"total_tokens":3}}"#;
        reader.push(body);
        let tokens = if is_read { 3 } else { 1000 + 28 };
        assert_eq!(reader.cost(1000), tokens, "{coding}");
    }
}

#[test]
fn a_document_that_is_too_deep_is_unreadable_and_not_kept() {
    let deep = "[".repeat(100_000) + r#"{"usage":{"total_tokens":3}}"#;
    assert_eq!(read(JSON, &deep).cost(0), u64::try_from(deep.len()).unwrap());
}

fn document() -> impl Strategy<Value = Value> {
    let key = prop_oneof![
        "usage|message|response|choices|delta|input_tokens|output_tokens|total_tokens|prompt_tokens",
        "\\PC{0,8}",
    ];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "\\PC{0,12}".prop_map(Value::from),
        "[\\\\\"{}\\[\\],:a]{0,12}".prop_map(Value::from),
    ];
    leaf.prop_recursive(5, 64, 6, move |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            proptest::collection::btree_map(key.clone(), inner, 0..6)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn the_numbers_are_those_that_a_parser_finds(value in document(), pretty: bool) {
        let text = if pretty { serde_json::to_string_pretty(&value) } else { serde_json::to_string(&value) };
        let mut reader = reader(JSON);
        reader.push(text.unwrap().as_bytes());
        let mut expected = Usage::default();
        let fields = [
            ("input_tokens", Field::Input), ("output_tokens", Field::Output),
            ("total_tokens", Field::Total), ("prompt_tokens", Field::Prompt),
        ];
        for (place, is_final) in [("", true), ("/response", true), ("/message", false)] {
            for (name, field) in fields {
                // A pointer would take a number for an index into an array; these names are none.
                let number = value.pointer(&format!("{place}/usage/{name}")).and_then(Value::as_u64);
                if let Some(tokens) = number {
                    expected.note(field, tokens);
                    expected.is_final |= is_final;
                }
            }
        }
        prop_assert_eq!(reader.usage, expected);
    }

    #[test]
    fn no_bytes_make_it_panic_and_what_was_reported_never_gets_less(
        parts in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..64), 0..16),
        events: bool,
    ) {
        let mut reader = reader(if events { EVENTS } else { JSON });
        let mut reported = 0;
        for part in parts {
            reader.push(&part);
            prop_assert!(reader.reported() >= reported);
            reported = reader.reported();
        }
        prop_assert!(reader.cost(0) >= reported);
    }
}
