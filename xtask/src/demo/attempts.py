"""Tries to reach 203.0.113.99 and 2001:db8::99 past any gateway; prints one JSON object for each attempt.

The argument `datagrams` leaves out TCP.
"""

import errno
import json
import os
import socket
import struct
import sys

V4, V6 = "203.0.113.99", "2001:db8::99"
PAYLOAD = b"past the gateway"
SECONDS = 3


def checksum(data):
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total >> 16) + (total & 0xFFFF)
    return ~(total + (total >> 16)) & 0xFFFF


def echo_request(kind):
    head = struct.pack("!BBHHH", kind, 0, 0, 7, 1)
    return struct.pack("!BBHHH", kind, 0, checksum(head), 7, 1)


def datagram(family, address, kind=socket.SOCK_DGRAM, protocol=0, payload=PAYLOAD):
    with socket.socket(family, kind, protocol) as sender:
        sender.sendto(payload, (address, 443 if kind == socket.SOCK_DGRAM and protocol == 0 else 0))


def connected_datagram(family, address):
    with socket.socket(family, socket.SOCK_DGRAM) as sender:
        sender.connect((address, 443))
        sender.send(PAYLOAD)


def query():
    """Asks a DNS server outside for slack.com. Whoever answers, the packet must not get there."""
    name = b"".join(bytes([len(label)]) + label for label in (b"slack", b"com"))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(SECONDS)
        client.connect((V4, 53))
        client.send(struct.pack("!HHHHHH", 7, 0x0100, 1, 0, 0, 0) + name + b"\0\0\1\0\1")
        return f"{len(client.recv(512))} bytes"


def stream(family, address, protocol=0):
    """Says what answered: a connection that the gateway takes over is not one that got out."""
    with socket.socket(family, socket.SOCK_STREAM, protocol) as client:
        client.settimeout(SECONDS)
        client.connect((address, 80))
        host = f"[{address}]" if ":" in address else address
        client.sendall(f"GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        answer = b""
        while chunk := client.recv(4096):
            answer += chunk
    return answer.decode(errors="replace")


def frames():
    """Whole packets, put on every wire but loopback by a packet socket."""
    body = struct.pack("!HHHH", 4444, 443, 8 + len(PAYLOAD), 0) + PAYLOAD
    head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(body), 1, 0, 64, socket.IPPROTO_UDP, 0,
                       socket.inet_aton("203.0.113.1"), socket.inet_aton(V4))
    head = head[:10] + struct.pack("!H", checksum(head)) + head[12:]
    names = [name for _, name in socket.if_nameindex() if name != "lo"]
    if not names:
        raise OSError(errno.ENODEV, "no interface but lo")
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sender:
        for name in names:
            sender.sendto(b"\xff" * 6 + b"\x02" + b"\0" * 5 + b"\x08\x00" + head + body, (name, 0x0800))


ATTEMPTS = {
    "UDP datagram": lambda: datagram(socket.AF_INET, V4),
    "UDP, connected": lambda: connected_datagram(socket.AF_INET, V4),
    "ICMP, raw socket": lambda: datagram(socket.AF_INET, V4, socket.SOCK_RAW, socket.IPPROTO_ICMP, echo_request(8)),
    "IP protocol 253, raw socket": lambda: datagram(socket.AF_INET, V4, socket.SOCK_RAW, 253),
    "IPv6 UDP datagram": lambda: datagram(socket.AF_INET6, V6),
    "ICMPv6, raw socket": lambda: datagram(socket.AF_INET6, V6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6, echo_request(128)),
    "DNS query": query,
    "frames by a packet socket": frames,
    "TCP to an address": lambda: stream(socket.AF_INET, V4),
    "IPv6 TCP to an address": lambda: stream(socket.AF_INET6, V6),
}

for name, attempt in ATTEMPTS.items():
    if "TCP" in name and sys.argv[1] == "datagrams":
        continue
    result = {"attempt": name, "errno": None, "message": None, "answer": None}
    try:
        result["answer"] = attempt()
    except OSError as refusal:
        number = refusal.errno
        result["errno"] = errno.errorcode.get(number, str(number)) if number else type(refusal).__name__
        result["message"] = os.strerror(number) if number else str(refusal)
    print(json.dumps(result), flush=True)
