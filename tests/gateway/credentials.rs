//! What the agent does not have and the upstream sees.

use crate::common::world::World;

#[test]
fn the_upstream_sees_the_credential_and_the_agent_does_not() {
    let Some(world) = World::new() else { return };
    let mail = world.origin("mail.test");
    let secret = world.secret("mail-token", "s3cret-of-the-mail");
    world.configure(&format!(
        r#"
[[agent]]
name = "email-agent"
[[credential]]
name = "mail"
source = {{ file = "{secret}" }}
hosts = ["mail.test"]
inject = {{ header = "Authorization", format = "Bearer {{value}}" }}
agents = ["email-agent"]
[[rule]]
name = "read mail"
hosts = ["mail.test"]
methods = ["GET"]
action = "allow"
"#
    ));
    let ended = world.run("email-agent", &["curl", "-sS", "https://mail.test/inbox"]);
    assert_eq!(ended.ok(), "hello from the origin\n");
    assert_eq!(mail.authorizations(), [Some("Bearer s3cret-of-the-mail".to_owned())]);
}
