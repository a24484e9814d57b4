//! The resolver against servers on this machine, and what answers mean.

use hickory_proto::op::OpCode;
use hickory_proto::rr::rdata::{A, NS, SOA};
use tokio::net::UdpSocket;

use super::*;

/// A server on this machine that knows only these records.
pub(crate) async fn serving(records: Vec<Record>) -> SocketAddr {
    serving_but(records, None).await
}

/// The same, which fails where it is asked for records of this type.
pub(crate) async fn serving_but(records: Vec<Record>, broken: Option<RecordType>) -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    tokio::spawn(async move {
        let mut buffer = [0; 512];
        while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
            let asked = Message::from_vec(&buffer[..length]).unwrap();
            let mut answer = Message::response(asked.metadata.id, OpCode::Query);
            let query = asked.queries[0].clone();
            let fits = |record: &&Record| {
                record.record_type() == query.query_type() && same(&record.name, query.name())
            };
            answer.answers = records.iter().filter(fits).cloned().collect();
            if broken == Some(query.query_type()) {
                answer.metadata.response_code = ResponseCode::ServFail;
            }
            answer.queries = vec![query];
            socket
                .send_to(&answer.to_vec().unwrap(), from)
                .await
                .unwrap();
        }
    });
    address
}

/// An A record.
pub(crate) fn address(owner: &str, ip: &str) -> Record {
    let IpAddr::V4(ip) = ip.parse().unwrap() else {
        panic!("expected IPv4")
    };
    Record::from_rdata(name(owner).unwrap(), 60, RData::A(A(ip)))
}

/// Boulder and the resolvers of most systems go on with what the other lookup has found.
#[tokio::test]
async fn the_addresses_of_one_family_are_enough_where_the_other_cannot_be_looked_up() {
    let host = name("shop.example").unwrap();
    let records = vec![address("shop.example", "10.0.0.7")];
    for (broken, found) in [
        (None, Some(1)),
        (Some(RecordType::AAAA), Some(1)),
        (Some(RecordType::A), None),
    ] {
        let server = serving_but(records.clone(), broken).await;
        let resolver = Resolver::new(&[server]).unwrap();
        let addresses = resolver.addresses(&host).await;
        let count = addresses.as_ref().ok().map(Vec::len);
        assert_eq!(count, found, "{broken:?}: {addresses:?}");
    }
}

/// The owner of a zone's NS records may direct our questions anywhere, except to this machine.
#[tokio::test]
async fn no_server_of_a_zone_is_asked_on_this_machine_or_for_metadata() {
    let ns = |host: &str| {
        let host = RData::NS(NS(name(host).unwrap()));
        Record::from_rdata(name("zone.example").unwrap(), 60, host)
    };
    let records = vec![
        ns("here.example"),
        ns("metadata.example"),
        ns("there.example"),
        address("here.example", "127.0.0.1"),
        address("metadata.example", "169.254.169.254"),
        address("there.example", "10.0.0.53"),
    ];
    let resolver = Resolver::new(&[serving(records).await]).unwrap();
    let zone = name("zone.example").unwrap();
    for (nearby, expected) in [
        (Nearby::Closed, &["10.0.0.53:53"][..]),
        (Nearby::Open, &["127.0.0.1:53", "10.0.0.53:53"]),
    ] {
        let found = resolver.authorities(nearby, &zone).await.unwrap();
        let addresses: Vec<String> = found
            .iter()
            .flat_map(|authority| authority.addresses.iter().map(ToString::to_string))
            .collect();
        assert_eq!(addresses, expected);
    }
}

#[tokio::test]
async fn of_very_many_servers_of_a_zone_the_first_are_asked() {
    let zone = name("zone.example").unwrap();
    let hosts: Vec<String> = (0..40).map(|number| format!("n{number}.example")).collect();
    let ns = hosts.iter().map(|host| {
        let host = RData::NS(NS(name(host).unwrap()));
        Record::from_rdata(zone.clone(), 60, host)
    });
    let addresses = hosts.iter().flat_map(|host| {
        let ips = (0..10).map(|number| format!("10.0.0.{number}"));
        ips.map(|ip| address(host, &ip))
    });
    let records = ns.chain(addresses).collect();
    let resolver = Resolver::new(&[serving(records).await]).unwrap();
    let found = resolver.authorities(Nearby::Closed, &zone).await.unwrap();
    assert_eq!(found.len(), MOST_SERVERS);
    assert!(found.iter().all(|it| it.addresses.len() == MOST_ADDRESSES));
}

fn soa(owner: &str) -> Record {
    let name = |text| name(text).unwrap();
    let soa = SOA::new(name("ns.example"), name("ops.example"), 1, 2, 3, 4, 5);
    Record::from_rdata(name(owner), 60, RData::SOA(soa))
}

#[test]
fn the_zone_is_what_the_soa_above_the_name_says() {
    let asked = name("_acme-challenge.www.example.com").unwrap();
    for (answers, authorities, zone) in [
        (
            vec![soa("_acme-challenge.WWW.example.com")],
            vec![],
            Some("_acme-challenge.www.example.com"),
        ),
        (vec![], vec![soa("example.com")], Some("example.com")),
        // The SOA of a CNAME's target.
        (vec![soa("other.example")], vec![soa("example.org")], None),
        (vec![], vec![soa(".")], None),
        (vec![], vec![], None),
    ] {
        let mut answer = Message::query();
        answer.answers = answers;
        answer.authorities = authorities;
        let found = soa_owner(&answer, &asked).map(|name| text(&name));
        assert_eq!(found.as_deref(), zone);
    }
}

#[test]
fn what_a_server_answers_is_told_in_the_words_of_dns() {
    let answers = |code| {
        let mut answer = Message::response(0, OpCode::Query);
        answer.metadata.response_code = code;
        answer
    };
    for (code, told) in [
        (ResponseCode::NXDomain, "NXDOMAIN"),
        (ResponseCode::NoError, "NODATA"),
    ] {
        assert_eq!(absence(&answers(code)), told);
    }
    for (code, told) in [
        (
            ResponseCode::ServFail,
            "SERVFAIL (broken DNSSEC looks like this)",
        ),
        (ResponseCode::Refused, "REFUSED"),
    ] {
        let failed = Error::Failed {
            name: "a.example".to_owned(),
            kind: RecordType::TXT,
            server: "192.0.2.53:53".to_owned(),
            code,
        };
        let expected = format!("TXT a.example: 192.0.2.53:53 answers {told}");
        assert_eq!(failed.to_string(), expected);
    }
}

#[test]
fn the_systems_servers_are_read() {
    let text = "# made by nobody\nsearch a.example\nnameserver 10.0.0.10\n nameserver fd00::a\nnameserver x\n";
    let found: Vec<_> = nameservers(text)
        .iter()
        .map(SocketAddr::to_string)
        .collect();
    assert_eq!(found, ["10.0.0.10:53", "[fd00::a]:53"]);
}
