//! What the CA answers, request by request (RFC 8555, 7; RFC 9773, 4).

use super::*;

/// An answer of the CA.
struct Said {
    code: u16,
    body: Vec<u8>,
    headers: Vec<(header::HeaderName, String)>,
}

impl Said {
    fn json(code: u16, body: &Value) -> Self {
        Self {
            code,
            body: body.to_string().into_bytes(),
            headers: vec![(header::CONTENT_TYPE, "application/json".into())],
        }
    }

    fn problem(code: u16, kind: &str, detail: &str) -> Self {
        let body = json!({"type": format!("urn:ietf:params:acme:error:{kind}"), "detail": detail, "status": code});
        Self {
            headers: vec![(header::CONTENT_TYPE, "application/problem+json".into())],
            ..Self::json(code, &body)
        }
    }

    fn with(mut self, name: header::HeaderName, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    fn limited(seconds: i64, detail: &str) -> Self {
        Self::problem(429, "rateLimited", detail).with(header::RETRY_AFTER, seconds.to_string())
    }
}

/// Answers a request of a replica, as far as the weather lets it through.
///
/// # Errors
/// When the request or its answer is lost.
pub async fn answer(
    world: World,
    replica: Arc<str>,
    request: reqwest::Request,
) -> Result<reqwest::Response, reqwest::Error> {
    let (method, path) = (request.method().clone(), request.url().path().to_owned());
    let body = request
        .body()
        .and_then(reqwest::Body::as_bytes)
        .unwrap_or_default();
    let body = Bytes::copy_from_slice(body);
    let (fate, there, back) = {
        let mut now = world.now();
        now.requests.ca += 1;
        (
            now.weather.of_ca(),
            now.weather.way() * 10,
            now.weather.way() * 10,
        )
    };
    if fate != Fate::Fair && world.now().weather.ca_up {
        world.tell(
            &replica,
            format_args!("CA {method} {}: {fate:?}", told(&path)),
        );
    }
    sleep(there).await;
    match fate {
        Fate::LostBefore => return Err(lost()),
        Fate::DiesBefore => return world.die(&replica).await,
        Fate::Late(late) => sleep(late).await,
        Fate::Refused(429) => {
            let seconds = i64::try_from(world.now().chance.between(60, 20_000)).unwrap_or(60);
            let mut now = world.now();
            if path == "/new-order" {
                now.ca
                    .closed
                    .insert(replica.to_string(), clock::now() + seconds);
            }
            let mut said = Said::limited(seconds, "as the weather is");
            if now.planted_is("retry-after") {
                said.headers
                    .retain(|(name, _)| *name != header::RETRY_AFTER);
            }
            return Ok(response(&mut now, said));
        }
        Fate::Refused(code) => {
            let said = Said::problem(code, "serverInternal", "as the weather is");
            return Ok(response(&mut world.now(), said));
        }
        Fate::Fair | Fate::LostAfter | Fate::DiesAfter => {}
    }
    let answer = {
        let mut now = world.now();
        let said = carry_out(&world, &mut now, &replica, &method, &path, &body);
        response(&mut now, said)
    };
    match fate {
        Fate::LostAfter => return Err(lost()),
        Fate::DiesAfter => return world.die(&replica).await,
        _ => {}
    }
    sleep(back).await;
    Ok(answer)
}

/// A path without the certificate's identifier.
fn told(path: &str) -> &str {
    if path.starts_with("/info/") {
        "/info"
    } else {
        path
    }
}

/// The error of a client that gets no answer: one of its own kind cannot be made.
fn lost() -> reqwest::Error {
    let nowhere = Request::builder().uri("/").body("");
    let nowhere = nowhere.unwrap_or_else(|error| panic!("{error}"));
    match reqwest::Request::try_from(nowhere) {
        Ok(_) => panic!("a URL without a host is none"),
        Err(error) => error,
    }
}

fn response(now: &mut State, said: Said) -> reqwest::Response {
    let mut answer = Response::builder()
        .status(said.code)
        .header("replay-nonce", now.ca.nonce());
    for (name, value) in said.headers {
        answer = answer.header(name, value);
    }
    let answer = answer.body(said.body);
    answer.unwrap_or_else(|error| panic!("{error}")).into()
}

fn carry_out(
    world: &World,
    now: &mut State,
    replica: &Arc<str>,
    method: &Method,
    path: &str,
    body: &Bytes,
) -> Said {
    let mut parts = path.trim_matches('/').split('/');
    let (what, number) = (parts.next().unwrap_or_default(), parts.next());
    let number: usize = match (what, number.map(str::parse)) {
        ("info", _) => return info(now, path),
        (_, Some(Ok(number))) => number,
        _ => 0,
    };
    match (method.as_str(), what) {
        ("GET", "directory") => return directory(now),
        ("HEAD", "new-nonce") => return Said::json(200, &Value::Null),
        ("POST", _) => {}
        _ => return Said::problem(405, "malformed", "no such method"),
    }
    let (account, payload) = match signed(&mut now.ca, body) {
        Ok(signed) => signed,
        Err(said) => return said,
    };
    now.left("a request to the CA", &payload.to_string());
    let ca = &mut now.ca;
    if !ca.knows(what, number) {
        return Said::problem(404, "malformed", "no such thing");
    }
    match what {
        "new-account" => new_account(ca, &account, &payload),
        "account" => Said::json(200, &json!({"status": "valid"})),
        "new-order" => {
            let replica = replica.to_string();
            let (said, names) = new_order(ca, account, &payload);
            now.ordered(&replica, &names, said.code);
            said
        }
        "order" => {
            ca.settle(number);
            let said = Said::json(200, &ca.order_body(number));
            match ca.orders[number].status {
                "processing" => said.with(header::RETRY_AFTER, "3"),
                _ => said,
            }
        }
        "authz" => {
            if payload["status"] == "deactivated" {
                ca.authorizations[number].status = "deactivated";
            }
            let it = &mut ca.authorizations[number];
            if it.status == "pending" && clock::now() > it.until {
                it.status = "expired";
            }
            Said::json(200, &ca.authorization_body(number))
        }
        "challenge" => {
            let it = &mut ca.authorizations[number];
            if it.status == "pending" && it.challenge == "pending" {
                it.challenge = "processing";
                tokio::spawn(validate(world.clone(), number));
            }
            let body = ca.authorization_body(number)["challenges"][0].clone();
            let up = format!("<{BASE}/authz/{number}>;rel=\"up\"");
            Said::json(200, &body).with(header::LINK, up)
        }
        "finalize" => finalize(world, now, replica, number, &payload),
        "cert" => Said {
            code: 200,
            body: ca.issued[number].chain.clone().into_bytes(),
            headers: vec![(
                header::CONTENT_TYPE,
                "application/pem-certificate-chain".into(),
            )],
        },
        _ => Said::problem(404, "malformed", "no such thing"),
    }
}

fn directory(now: &State) -> Said {
    let mut body = json!({
        "newNonce": format!("{BASE}/new-nonce"), "newAccount": format!("{BASE}/new-account"),
        "newOrder": format!("{BASE}/new-order"), "revokeCert": format!("{BASE}/revoke"),
        "keyChange": format!("{BASE}/key-change"), "meta": {},
    });
    if now.ca.has_info {
        body["renewalInfo"] = json!(format!("{BASE}/info"));
    }
    Said::json(200, &body)
}

/// The account or its new key, and the payload of a request whose nonce is good.
fn signed(ca: &mut Authority, body: &Bytes) -> Result<(String, Value), Said> {
    let malformed = || Said::problem(400, "malformed", "no JWS");
    let body: Value = serde_json::from_slice(body).map_err(|_| malformed())?;
    let part = |name: &str| BASE64.decode(body[name].as_str()?).ok();
    let protected = part("protected").ok_or_else(malformed)?;
    let protected: Value = serde_json::from_slice(&protected).map_err(|_| malformed())?;
    let nonce = protected["nonce"].as_str().unwrap_or_default();
    if !ca.nonces.remove(nonce) {
        return Err(Said::problem(400, "badNonce", "used, or never given"));
    }
    let account = match protected["kid"].as_str() {
        Some(kid) if ca.accounts.values().any(|url| url == kid) => kid.to_owned(),
        Some(_) => return Err(Said::problem(400, "accountDoesNotExist", "unknown")),
        None => thumbprint(&protected["jwk"]),
    };
    let payload = part("payload").ok_or_else(malformed)?;
    let payload = match payload.len() {
        0 => Value::Null,
        _ => serde_json::from_slice(&payload).map_err(|_| malformed())?,
    };
    Ok((account, payload))
}

/// RFC 7638.
fn thumbprint(jwk: &Value) -> String {
    let text = |name: &str| jwk[name].as_str().unwrap_or_default().to_owned();
    let (crv, kty, x, y) = (text("crv"), text("kty"), text("x"), text("y"));
    let canonical = format!(r#"{{"crv":"{crv}","kty":"{kty}","x":"{x}","y":"{y}"}}"#);
    BASE64.encode(digest(&SHA256, canonical.as_bytes()))
}

fn new_account(ca: &mut Authority, key: &str, payload: &Value) -> Said {
    let known = ca.accounts.get(key).cloned();
    if known.is_none() && payload["onlyReturnExisting"] == true {
        return Said::problem(400, "accountDoesNotExist", "unknown");
    }
    let code = if known.is_some() { 200 } else { 201 };
    let number = ca.accounts.len() + ca.wiped.iter().sum::<usize>();
    let url = known.unwrap_or_else(|| format!("{BASE}/account/{number}"));
    ca.accounts.insert(key.to_owned(), url.clone());
    Said::json(code, &json!({"status": "valid"})).with(header::LOCATION, url)
}

fn new_order(ca: &mut Authority, account: String, payload: &Value) -> (Said, Vec<String>) {
    let now = clock::now();
    let names = payload["identifiers"].as_array().into_iter().flatten();
    let names = names.filter_map(|it| Some(it["value"].as_str()?.to_owned()));
    let names: BTreeSet<String> = names.collect();
    let names: Vec<String> = names.into_iter().collect();
    let replaced = payload["replaces"].as_str();
    let replaced = replaced.and_then(|id| ca.identified(id));
    if replaced.is_some_and(|it| ca.issued[it].replaced) {
        return (
            Said::problem(409, "alreadyReplaced", "it was replaced"),
            names,
        );
    }
    let of_account = ca.orders.iter().filter(|it| it.account == account);
    let recent = of_account.filter(|it| it.made > now - 3 * HOUR).count();
    if recent >= ORDERS {
        return (Said::limited(HOUR, "too many new orders recently"), names);
    }
    for name in &names {
        let failed = ca
            .failures
            .iter()
            .filter(|(at, of)| *at > now - HOUR && of == name);
        if failed.count() >= FAILURES {
            let detail = format!("too many failed authorizations recently: {name}");
            return (Said::limited(HOUR, &detail), names);
        }
    }
    let same = { ca.issued.iter() }.filter(|it| it.names == names && it.at > now - WEEK);
    let same = same.filter(|it| !it.replaces).count();
    if replaced.is_none() && same >= DUPLICATES {
        return (
            Said::limited(
                DAY,
                "too many certificates for this exact set of identifiers",
            ),
            names,
        );
    }
    let mut authorizations = Vec::new();
    for name in &names {
        let mut all = ca.authorizations.iter().enumerate();
        let known = all.position(|(at, it)| {
            ca.reuses
                && ca.knows("authz", at)
                && it.account == account
                && it.name == *name
                && it.status == "valid"
                && it.until > now
        });
        authorizations.push(known.unwrap_or_else(|| {
            let token = format!("{:022x}{:016x}", ca.chance.draw(), ca.chance.draw());
            ca.authorizations.push(Authorization {
                account: account.clone(),
                name: name.clone(),
                token,
                status: "pending",
                challenge: "pending",
                until: now + WEEK,
            });
            ca.authorizations.len() - 1
        }));
    }
    if let Some(replaced) = replaced {
        ca.issued[replaced].replaced = true;
    }
    let number = ca.orders.len();
    ca.orders.push(Order {
        account,
        names: names.clone(),
        status: "pending",
        authorizations,
        made: now,
        expires: now + WEEK,
        replaces: replaced,
        certificate: None,
    });
    ca.settle(number);
    let said = Said::json(201, &ca.order_body(number));
    (
        said.with(header::LOCATION, format!("{BASE}/order/{number}")),
        names,
    )
}

/// Fetches a proof, as HTTP-01 has it, from whichever replica the way leads to.
async fn validate(world: World, number: usize) {
    let pause = Duration::from_millis(world.now().ca.chance.between(200, 4_000));
    sleep(pause).await;
    let (token, name, expected, port) = {
        let now = world.now();
        let it = &now.ca.authorizations[number];
        let key = { now.ca.accounts.iter() }.find(|(_, url)| **url == it.account);
        let key = key.map(|(key, _)| key.as_str()).unwrap_or_default();
        let ports: Vec<&axum::Router> = now.ports.values().collect();
        let port = ports.get(number % ports.len().max(1)).copied().cloned();
        let port = port.filter(|_| now.ca.reaches);
        (
            it.token.clone(),
            it.name.clone(),
            format!("{}.{key}", it.token),
            port,
        )
    };
    let found = match port {
        None => String::new(),
        Some(port) => {
            let uri = format!("/.well-known/acme-challenge/{token}");
            let request = Request::builder().uri(uri).body(axum::body::Body::empty());
            let request = request.unwrap_or_else(|error| panic!("{error}"));
            let answer = tokio::time::timeout(Duration::from_secs(10), port.oneshot(request)).await;
            match answer {
                Ok(Ok(answer)) => {
                    let bytes = to_bytes(answer.into_body(), 10_000)
                        .await
                        .unwrap_or_default();
                    String::from_utf8_lossy(&bytes).into_owned()
                }
                _ => String::new(),
            }
        }
    };
    let mut now = world.now();
    let at = clock::now();
    let it = &mut now.ca.authorizations[number];
    if it.status != "pending" {
        return;
    }
    let verdict = if found == expected {
        "valid"
    } else {
        "invalid"
    };
    (it.status, it.challenge) = (verdict, verdict);
    if verdict == "valid" {
        it.until = at + 30 * DAY;
    } else {
        now.ca.failures.push((at, name.clone()));
    }
    now.story.tell("ca", format_args!("{name}: {verdict}"));
}

fn finalize(
    world: &World,
    now: &mut State,
    replica: &Arc<str>,
    number: usize,
    payload: &Value,
) -> Said {
    let ca = &mut now.ca;
    ca.settle(number);
    if ca.orders[number].status != "ready" {
        return Said::problem(403, "orderNotReady", ca.orders[number].status);
    }
    let csr = payload["csr"]
        .as_str()
        .and_then(|csr| BASE64.decode(csr).ok());
    let csr = csr.unwrap_or_default();
    let Ok(csr) = CertReq::from_der(&csr) else {
        return Said::problem(400, "badCSR", "it cannot be read");
    };
    let key = csr.info.public_key.subject_public_key.raw_bytes().to_vec();
    let algorithm = match key.len() {
        65 => &rcgen::PKCS_ECDSA_P256_SHA256,
        97 => &rcgen::PKCS_ECDSA_P384_SHA384,
        _ => &rcgen::PKCS_RSA_SHA256,
    };
    let (names, ordered) = (ca.orders[number].names.clone(), ca.orders[number].made);
    let begins = clock::now() - HOUR;
    let (replaces, lasts) = (ca.orders[number].replaces, ca.lifetime);
    let key = Requested { algorithm, key };
    let certificate = ca.issue(&names, &key, (begins, begins + lasts), ordered, replaces);
    let order = &mut ca.orders[number];
    order.certificate = Some(certificate);
    let pause = ca.chance.below(4);
    if pause > 0 {
        order.status = "processing";
        let world = world.clone();
        tokio::spawn(async move {
            sleep(Duration::from_secs(pause)).await;
            world.now().ca.orders[number].status = "valid";
        });
    } else {
        order.status = "valid";
    }
    let said = Said::json(200, &ca.order_body(number))
        .with(header::LOCATION, format!("{BASE}/order/{number}"));
    now.issued(replica, certificate);
    said
}

/// RFC 9773: the window begins when a third of the lifetime is left.
fn info(now: &mut State, path: &str) -> Said {
    let id = path.trim_start_matches("/info/");
    let number = now.ca.identified(id);
    let Some(number) = number.filter(|_| now.ca.has_info) else {
        return Said::problem(404, "malformed", "no such certificate");
    };
    let it = &now.ca.issued[number];
    let lifetime = it.not_after - it.not_before;
    let start = it.not_after - lifetime / 3;
    let (start, end) = match it.wanted_back {
        Some(at) => (at - 2 * HOUR, at - HOUR),
        None if now.planted_is("window") => (clock::now() - 2 * HOUR, clock::now() - HOUR),
        None => (start, start + (lifetime / 45).max(HOUR)),
    };
    let window = json!({"suggestedWindow": {"start": timestamp(start), "end": timestamp(end)}});
    Said::json(200, &window).with(header::RETRY_AFTER, "43200")
}
