//! Every vector by its number in the threat model, and the tests that prove what holds it.

/// One way out.
pub(crate) struct Vector {
    pub(crate) number: u8,
    pub(crate) what: &'static str,
    pub(crate) proof: Proof,
}

/// Why it is closed.
pub(crate) enum Proof {
    /// These tests try it.
    Tests(&'static [&'static str]),
    /// These tests try what can be held; the rest is out of reach of any gateway, for this reason.
    Partly(&'static [&'static str], &'static str),
}

use Proof::{Partly, Tests};

const fn vector(number: u8, what: &'static str, proof: Proof) -> Vector {
    Vector { number, what, proof }
}

const TCP: Proof = Tests(&["a_connection_of_tcp_is_the_gateways_or_goes_nowhere"]);
const UDP: Proof = Tests(&["a_datagram_goes_nowhere_however_its_destination_is_named"]);
const FAST_OPEN: Proof = Tests(&["fast_open_carries_no_byte_outside_at_once_or_deferred"]);
const SOURCE_ROUTE: Proof = Tests(&["an_ipv4_source_route_leads_nowhere"]);
const FRAMES: Proof = Tests(&["frames_past_ip_end_at_the_host_s_end_of_the_wire"]);
const FAMILIES: Proof = Tests(&["families_besides_ip_are_not_there_or_send_nothing"]);

pub(crate) const VECTORS: [Vector; 58] = [
    vector(1, "connect of TCP, IPv4", TCP),
    vector(2, "connect of TCP, IPv6", TCP),
    vector(3, "connect of TCP to a v4-mapped address", TCP),
    vector(4, "datagram to a v4-mapped address", UDP),
    vector(5, "connected datagram socket", UDP),
    vector(6, "sendto, sendmsg, sendmmsg", UDP),
    vector(7, "connected datagram socket that names another destination", UDP),
    vector(8, "io_uring", Tests(&["io_uring_is_governed_like_the_calls_it_stands_for"])),
    vector(9, "Fast Open by MSG_FASTOPEN", FAST_OPEN),
    vector(10, "Fast Open by TCP_FASTOPEN_CONNECT, deferred", FAST_OPEN),
    vector(11, "reconnect after AF_UNSPEC", TCP),
    vector(12, "MPTCP", Tests(&["a_socket_of_mptcp_cannot_be_made_and_would_not_get_out"])),
    vector(13, "IPv4 source route as a socket option", SOURCE_ROUTE),
    vector(14, "IPv4 source route in a message", SOURCE_ROUTE),
    vector(15, "IPv4 source route and Fast Open", SOURCE_ROUTE),
    vector(16, "IPv6 segment routing header", Tests(&["an_ipv6_segment_route_leads_nowhere"])),
    vector(
        17,
        "packet info",
        Tests(&[
            "a_datagram_to_the_own_loopback_does_not_leave_by_the_device_that_it_names",
            "packet_info_does_not_get_a_datagram_outside",
        ]),
    ),
    vector(
        18,
        "unicast interface",
        Tests(&[
            "a_datagram_to_the_own_loopback_does_not_leave_by_the_device_that_it_names",
            "a_unicast_device_does_not_turn_a_connection_outside",
        ]),
    ),
    vector(
        19,
        "bound to the device before connect",
        Tests(&["a_socket_that_is_bound_to_the_device_may_not_connect"]),
    ),
    vector(
        20,
        "bound to the device after connect",
        Tests(&["a_connection_that_is_bound_to_the_device_afterwards_sends_nothing_by_it"]),
    ),
    vector(
        21,
        "source address of the device",
        Tests(&["a_source_address_of_the_device_does_not_keep_a_connection_from_the_gateway"]),
    ),
    vector(
        22,
        "spoofed source, IPv4",
        Tests(&[
            "a_spoofed_source_gets_nothing_out_of_the_workload_nor_out_of_the_gateway",
            "an_address_that_is_only_bound_connects_nowhere_in_ipv4",
        ]),
    ),
    vector(
        23,
        "spoofed source, IPv6: the server's answer",
        Tests(&[
            "a_spoofed_source_gets_nothing_out_of_the_workload_nor_out_of_the_gateway",
            "the_answer_to_a_spoofed_source_would_leave_by_a_server_that_is_not_bound_to_the_loopback",
        ]),
    ),
    vector(
        24,
        "spoofed query to the resolver",
        Tests(&["the_gateways_resolver_does_not_answer_a_spoofed_source_by_the_wire"]),
    ),
    vector(25, "UDP-Lite", Tests(&["udp_lite_sends_nothing"])),
    vector(26, "ping socket", Tests(&["a_ping_socket_sends_nothing"])),
    vector(27, "raw IP", Tests(&["a_raw_socket_sends_nothing_not_even_with_a_header_of_its_own"])),
    vector(
        28,
        "SCTP, DCCP, L2TP and every other protocol of the family",
        Tests(&["of_every_type_and_protocol_number_only_tcp_and_udp_can_be_made"]),
    ),
    vector(29, "AF_PACKET, also past the queue", FRAMES),
    vector(30, "AF_XDP", FRAMES),
    vector(
        31,
        "group membership reports",
        Tests(&["what_the_kernel_announces_of_a_joined_group_ends_at_the_wire"]),
    ),
    vector(
        32,
        "resets and replies of the kernel",
        Tests(&[
            "what_the_kernel_answers_by_itself_ends_at_the_wire",
            "what_a_neighbour_asks_of_the_kernel_is_not_answered",
            "a_connection_of_before_the_capture_says_nothing_from_its_grave",
        ]),
    ),
    vector(33, "PPPoX and other families below IP", FAMILIES),
    vector(
        34,
        "AF_VSOCK",
        Partly(
            &[
                "a_socket_for_the_hypervisor_is_for_the_container_s_filter_and_puts_nothing_on_the_wire",
            ],
            "a filter of system calls has to refuse the family: no hook of a network or cgroup sees it",
        ),
    ),
    vector(
        35,
        "local sockets of the host",
        Partly(
            &["a_local_socket_of_the_host_is_not_the_workloads"],
            "a socket with a file is reached wherever it is mounted: discovery names such mounts",
        ),
    ),
    vector(
        36,
        "network administration: routes, translation, destroyed sockets",
        Tests(&[
            "without_its_capability_nothing_of_the_network_can_be_changed",
            "translated_and_rerouted_packets_of_a_network_admin_do_not_leave",
            "a_network_admin_who_destroys_the_listener_is_refused_from_then_on",
        ]),
    ),
    vector(
        37,
        "network administration: new devices",
        Tests(&["devices_and_redirections_of_a_network_admin_end_at_the_wire"]),
    ),
    vector(
        38,
        "sockets handed over, inherited, or from before the capture",
        Tests(&[
            "a_socket_that_another_process_hands_over_stays_behind_the_wire_fence",
            "a_socket_that_a_program_inherits_stays_behind_the_wire_fence",
            "sockets_from_before_the_capture_are_cut_off_with_their_open_connections",
        ]),
    ),
    vector(39, "setuid programs", Tests(&["a_setuid_program_is_governed_like_who_starts_it"])),
    vector(
        40,
        "cgroups of the workload's own making",
        Tests(&["a_cgroup_of_its_own_making_does_not_free_a_process"]),
    ),
    vector(
        41,
        "moved to another cgroup",
        Tests(&[
            "a_process_that_is_moved_out_stays_behind_the_wire_fence_and_its_sockets_behind_all",
        ]),
    ),
    vector(
        42,
        "network namespaces of the workload's own making",
        Tests(&["a_nested_network_namespace_has_no_way_out_and_nothing_in_it_is_governed_open"]),
    ),
    vector(
        43,
        "the gateway's ports",
        Tests(&[
            "the_gateways_place_cannot_be_taken_while_the_daemon_is_dead",
            "a_port_that_the_kernel_chooses_is_not_the_gateways",
            "a_workload_that_has_taken_the_gateways_port_beforehand_is_closed_and_not_opened",
        ]),
    ),
    vector(
        44,
        "direct connect to the gateway",
        Tests(&["the_gateways_port_cannot_be_connected_to_directly"]),
    ),
    vector(
        45,
        "handshake with the gateway by hand",
        Tests(&["a_handshake_that_is_made_of_frames_has_no_destination_and_is_reset"]),
    ),
    vector(
        46,
        "inbound connections and datagrams",
        Tests(&[
            "nobody_outside_reaches_a_server_in_the_workload",
            "the_egress_fence_alone_keeps_a_server_from_answering",
            "the_ingress_fence_and_the_wire_fence_alone_keep_everything_from_a_server",
        ]),
    ),
    vector(
        47,
        "passive receive",
        Tests(&[
            "a_process_that_only_watches_its_device_sees_nothing_from_outside",
            "nobody_can_tell_a_workload_anything_by_frames",
        ]),
    ),
    vector(48, "the own loopback", Tests(&["the_workloads_own_loopback_is_its_own"])),
    vector(
        49,
        "the own address on the device",
        Tests(&["the_workloads_own_address_on_the_device_is_its_own_and_nothing_of_it_leaves"]),
    ),
    vector(
        50,
        "the engine's resolver on the loopback",
        Tests(&["a_resolver_that_an_engine_puts_on_the_loopback_is_not_asked"]),
    ),
    vector(
        51,
        "the host's network; rights that no gateway can hold",
        Partly(
            &["a_workload_in_the_hosts_network_is_closed_and_not_opened"],
            "rights over the host's kernel or processes are rights over the gateway: discovery names them",
        ),
    ),
    vector(
        52,
        "devices that carry packets",
        Partly(
            &[
                "without_its_capability_no_device_can_be_made_and_an_opened_one_puts_nothing_on_the_wire",
            ],
            "a device that is given to a workload carries packets past the kernel: discovery names it",
        ),
    ),
    vector(53, "marks", Tests(&["a_mark_exempts_from_nothing"])),
    vector(
        54,
        "mounts over the network",
        Tests(&["file_systems_over_the_network_are_not_a_workload_s_to_mount"]),
    ),
    vector(55, "SMC, RDS, TIPC, CAN and others", FAMILIES),
    vector(
        56,
        "no room for a destination",
        Tests(&["a_destination_that_there_is_no_room_for_is_refused"]),
    ),
    vector(
        57,
        "full maps",
        Tests(&["a_flood_of_connections_gets_nothing_out_and_nothing_wrongly_addressed"]),
    ),
    vector(
        58,
        "system calls of 32-bit programs",
        Tests(&["the_calls_of_32_bit_programs_are_governed_like_the_others"]),
    ),
];

/// The sources of all tests, as one text.
fn sources() -> String {
    fn read(folder: &std::path::Path, text: &mut String) {
        for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
            let path = entry.path();
            if path.is_dir() {
                read(&path, text);
            } else if path.extension().is_some_and(|end| end == "rs") {
                text.push_str(&std::fs::read_to_string(path).unwrap());
            }
        }
    }
    let mut text = String::new();
    read(std::path::Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests")), &mut text);
    text
}

#[test]
fn every_vector_has_its_tests_and_what_no_test_holds_its_reason() {
    let sources = sources();
    for (vector, number) in VECTORS.iter().zip(1_u8..) {
        assert_eq!(vector.number, number, "{}", vector.what);
        let (names, reason) = match vector.proof {
            Tests(names) => (names, None),
            Partly(names, reason) => (names, Some(reason)),
        };
        assert!(!names.is_empty() && reason != Some(""), "{number}");
        for name in names {
            let test = format!("#[test]\nfn {name}() {{");
            assert!(sources.contains(&test), "{number}: there is no test {name}");
        }
    }
}
