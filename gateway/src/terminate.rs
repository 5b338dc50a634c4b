//! `Sniffed::Tls` → `Terminated`: the gateway's own certificate authority and the handshake with the agent.
