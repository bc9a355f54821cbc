use proptest::prelude::*;

use super::*;

/// A header with a checksum, an id and the TLVs of TLS.
const WITH_CRC: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x68\x7F\0\0\x01\xC0\xA8\0\x01\x30\x39\x01\xBB\
    \x03\0\x04\x81\x21\x46\xE0\x05\0\x041234\x20\0\x4B\x07\0\0\0\0\x21\0\x07TLSv1.3\x22\0\x09localhost\
    \x25\0\x07RSA4096\x24\0\x0ARSA-SHA256\x23\0\x16TLS_AES_256_GCM_SHA384";

fn ends(source: &str, destination: &str) -> Option<Addresses> {
    Some(Addresses {
        source: source.parse().expect(source),
        destination: destination.parse().expect(destination),
    })
}

/// A header that is there whole is not found sooner, and what follows it is not of it.
#[track_caller]
fn expect(bytes: &[u8], header: &Header) {
    for short in 0..bytes.len() {
        assert_eq!(parse(&bytes[..short]), Ok(None), "{short} bytes");
    }
    for more in [&b""[..], b"payload", b"\r\n"] {
        let all = [bytes, more].concat();
        assert_eq!(parse(&all), Ok(Some((header.clone(), bytes.len()))));
    }
}

fn of(addresses: Option<Addresses>) -> Header {
    Header {
        addresses,
        ..Header::default()
    }
}

#[test]
fn lines_of_the_specification() {
    let longest = "PROXY TCP6 ffff:f...f:ffff ffff:f...f:ffff 65535 65535\r\n"
        .replace("ffff:f...f:ffff", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff");
    let most = "PROXY UNKNOWN ffff:f...f:ffff ffff:f...f:ffff 65535 65535\r\n"
        .replace("ffff:f...f:ffff", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff");
    assert_eq!((longest.len(), most.len()), (104, LONGEST_V1));
    let all = "[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]:65535";
    for (line, addresses) in [
        (
            "PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n",
            ends("255.255.255.255:65535", "255.255.255.255:65535"),
        ),
        (
            "PROXY TCP4 192.168.0.1 192.168.0.11 56324 443\r\n",
            ends("192.168.0.1:56324", "192.168.0.11:443"),
        ),
        (
            "PROXY TCP6 2001:db8::1 ::1 0 80\r\n",
            ends("[2001:db8::1]:0", "[::1]:80"),
        ),
        (longest.as_str(), ends(all, all)),
        (most.as_str(), None),
        ("PROXY UNKNOWN\r\n", None),
    ] {
        expect(line.as_bytes(), &of(addresses));
    }
}

#[test]
fn headers_of_version_2() {
    let fixed = |command, family, length: usize| {
        let length = u16::try_from(length).unwrap().to_be_bytes();
        [&v2::SIGNATURE[..], &[command, family], &length].concat()
    };
    let v4 = [192, 0, 2, 7, 10, 0, 0, 1, 0x1F, 0x90, 0x01, 0xBB];
    let known = ends("192.0.2.7:8080", "10.0.0.1:443");
    expect(&[&fixed(0x21, 0x11, 12)[..], &v4].concat(), &of(known));
    // LOCAL, with and without a body, which is not looked at.
    expect(&fixed(0x20, 0x00, 0), &of(None));
    expect(&[&fixed(0x20, 0x11, 12)[..], &v4].concat(), &of(None));
    expect(&[&fixed(0x20, 0x00, 3)[..], &[1, 2, 3]].concat(), &of(None));
    // Of another family or protocol: the ends are not used, the TLVs are kept.
    let tlv = [0xE0, 0, 2, 1, 2];
    for (family, length) in [(0x00, 0), (0x12, 12), (0x22, 36), (0x31, 216), (0x32, 216)] {
        let bytes = [&fixed(0x21, family, length + 5)[..], &vec![7; length], &tlv].concat();
        let tlvs = tlv.to_vec();
        let header = Header {
            addresses: None,
            tlvs,
        };
        expect(&bytes, &header);
    }
    // Padding is not kept.
    let noop = [0x04, 0, 1, 0];
    let bytes = [&fixed(0x21, 0x11, 21)[..], &v4, &noop, &tlv].concat();
    let tlvs = tlv.to_vec();
    expect(
        &bytes,
        &Header {
            addresses: known,
            tlvs,
        },
    );
}

#[test]
fn a_checksum_is_compared() {
    // The check value of the catalogues of CRCs.
    assert_eq!(v2::crc32c(b"123456789".iter()), 0xE306_9283);
    let (header, length) = parse(WITH_CRC).unwrap().unwrap();
    assert_eq!(length, WITH_CRC.len());
    assert_eq!(header.addresses, ends("127.0.0.1:12345", "192.168.0.1:443"));
    // Without the checksum itself.
    assert_eq!(header.tlvs, WITH_CRC[35..]);
    for at in 16..WITH_CRC.len() {
        let mut wrong = WITH_CRC.to_vec();
        wrong[at] ^= 0x40;
        assert!(parse(&wrong).is_err() || at == 28, "byte {at}");
    }
}

#[test]
fn what_is_no_header_is_refused_as_soon_as_that_is_known() {
    let long = [b"PROXY UNKNOWN ", [b'x'; 92].as_slice(), b"\r\n"].concat();
    let v2 = |rest: &[u8]| [&v2::SIGNATURE[..], rest].concat();
    let refused: [(&[u8], &str); 30] = [
        (b"G", "begin"),
        (b"GET / HTTP/1.1\r\n", "begin"),
        (b"proxy TCP4", "begin"),
        (b"PROXZ", "begin"),
        (b"PROXY\t", "begin"),
        (b"\r\n\r\n\0\r\nQUIX", "begin"),
        (b"\x16\x03\x01", "begin"),
        (&long, "107"),
        (&[b"PROXY ", [b'1'; 101].as_slice()].concat(), "107"),
        (b"PROXY TCP4 1.2.3.4 1.2.3.4 1 2\n", "CR LF"),
        (b"PROXY TCP4 1.2.3.4 1.2.3.4 1 2\r\r", "CR LF"),
        (b"PROXY \r\n", "six"),
        (b"PROXY UNKNOWNX\r\n", "six"),
        (b"PROXY TCP4 1.2.3.4 1.2.3.4 1\r\n", "six"),
        (b"PROXY TCP4 1.2.3.4 1.2.3.4 1 2 \r\n", "six"),
        (b"PROXY TCP4  1.2.3.4 1.2.3.4 1 2\r\n", "six"),
        (b"PROXY TCP5 1.2.3.4 1.2.3.4 1 2\r\n", "addresses"),
        (b"PROXY TCP4 01.2.3.4 1.2.3.4 1 2\r\n", "addresses"),
        (b"PROXY TCP4 ::1 ::1 1 2\r\n", "addresses"),
        (b"PROXY TCP6 1.2.3.4 1.2.3.4 1 2\r\n", "addresses"),
        (b"PROXY TCP4 1.2.3.4 1.2.3.4 +1 2\r\n", "addresses"),
        (b"PROXY TCP4 1.2.3.4 1.2.3.4 01 2\r\n", "addresses"),
        (b"PROXY TCP4 1.2.3.4 1.2.3.4 1 65536\r\n", "addresses"),
        (b"PROXY TCP4 1.2.3.4 1.2.3.4 1 \xFF\r\n", "text"),
        (&v2(&[0x11, 0x11, 0, 12]), "command"),
        (&v2(&[0x22, 0x11, 0, 12]), "command"),
        (&v2(&[0x21, 0x13, 0, 12]), "family"),
        (&v2(&[0x21, 0x11, 0x10, 0x01]), "4112"),
        (&v2(&[0x21, 0x11, 0, 1, 0]), "room"),
        (&v2(&[0x21, 0x00, 0, 4, 1, 0, 2, 0]), "TLV"),
    ];
    for (bytes, why) in refused {
        let shown = String::from_utf8_lossy(bytes);
        let error = parse(bytes).expect_err(&shown).to_string();
        assert!(error.contains(why), "{shown:?}: {error}");
    }
}

#[test]
fn an_added_tlv_does_not_replace_one() {
    let mut header = Header::default();
    header.add(UNIQUE_ID, b"first");
    header.add(UNIQUE_ID, b"second");
    header.add(AUTHORITY, b"db.example");
    header.add(AUTHORITY + 1, &[0; 1 << 16]);
    assert_eq!(header.tlvs, b"\x05\0\x05first\x02\0\x0Adb.example");
}

#[test]
fn tls_of_a_client_is_told_in_one_tlv() {
    let told = |common_name| {
        let ssl = Ssl {
            version: "TLSv1.3",
            cipher: "AES",
            common_name,
        };
        ssl.value()
    };
    let without = b"\x01\0\0\0\x01\x21\0\x07TLSv1.3\x23\0\x03AES";
    let with = b"\0\0\0\0\x21\0\x07TLSv1.3\x22\0\x03bob\x23\0\x03AES";
    assert_eq!(told(None), without);
    assert_eq!(told(Some("bob")), [b"\x07", &with[..]].concat());
}

#[test]
fn ends_of_two_families_are_both_ipv6() {
    let mixed = of(ends("192.0.2.7:1", "[2001:db8::1]:2"));
    assert_eq!(
        mixed.to_v1(),
        b"PROXY TCP6 ::ffff:192.0.2.7 2001:db8::1 1 2\r\n"
    );
    let mapped = of(ends("[::ffff:192.0.2.7]:1", "[::ffff:192.0.2.8]:2"));
    assert_eq!(mapped.to_v1(), b"PROXY TCP4 192.0.2.7 192.0.2.8 1 2\r\n");
}

fn socket_address(v4: bool) -> impl Strategy<Value = SocketAddr> {
    any::<(u128, u16)>().prop_map(move |(ip, port)| match v4 {
        true => SocketAddr::from(((ip as u32).to_be_bytes(), port)),
        false => SocketAddr::from(((ip | 1 << 127).to_be_bytes(), port)),
    })
}

proptest! {
    #[test]
    fn what_is_written_is_read(
        source in socket_address(true),
        destination in socket_address(true),
        v6 in proptest::option::of((socket_address(false), socket_address(false))),
        tlvs in proptest::collection::vec((0x10_u8.., proptest::collection::vec(any::<u8>(), 0..99)), 0..9),
    ) {
        let (source, destination) = v6.unwrap_or((source, destination));
        let mut header = of(Some(Addresses { source, destination }));
        let line = header.to_v1();
        prop_assert_eq!(parse(&line), Ok(Some((header.clone(), line.len()))));
        tlvs.iter().for_each(|(kind, value)| header.add(*kind, value));
        let bytes = header.to_v2();
        prop_assert_eq!(parse(&bytes), Ok(Some((header, bytes.len()))));
    }

    #[test]
    fn another_implementation_agrees(
        source in socket_address(true),
        destination in socket_address(true),
        v6 in proptest::option::of((socket_address(false), socket_address(false))),
        id in proptest::collection::vec(any::<u8>(), 0..99),
    ) {
        use proxy_header::{ParseConfig, ProxiedAddress, ProxyHeader, Tlv};
        let (source, destination) = v6.unwrap_or((source, destination));
        let mut header = of(Some(Addresses { source, destination }));
        let mut theirs = ProxyHeader::with_address(ProxiedAddress::stream(source, destination));
        let mut line = Vec::new();
        theirs.encode_v1(&mut line).expect("one family");
        prop_assert_eq!(header.to_v1(), line);
        header.add(UNIQUE_ID, &id);
        theirs.append_tlv(Tlv::UniqueId(id.into()));
        let bytes = header.to_v2();
        let (read, length) = ProxyHeader::parse(&bytes, ParseConfig::default()).expect("a header");
        prop_assert_eq!((read, length), (theirs, bytes.len()));
    }

    #[test]
    fn any_bytes_are_a_header_or_none(
        signed in 0..3_usize,
        bytes in proptest::collection::vec(any::<u8>(), 0..200),
    ) {
        let bytes = [[&b""[..], v1::SIGNATURE, &v2::SIGNATURE][signed], &bytes].concat();
        if let Ok(Some((header, length))) = parse(&bytes) {
            prop_assert!(length <= bytes.len());
            prop_assert!(header.tlvs.len() < length);
        }
    }
}
