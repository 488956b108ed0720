//! The private keys in `keys/` were made for these tests and open nothing.

use std::{fs, path::Path};

use jsonwebtoken::{EncodingKey, Header, encode, get_current_timestamp};
use serde_json::json;

use super::*;

const SECRET: &str = "a secret of thirty-two bytes, yes";

fn keys() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/src/auth/token/keys"))
}

fn private(name: &str) -> Vec<u8> {
    fs::read(keys().join(name)).unwrap()
}

struct Issuer {
    header: Header,
    key: EncodingKey,
}

fn issuer(algorithm: Algorithm, kid: Option<&str>) -> Issuer {
    let key = match algorithm {
        Algorithm::RS256 => EncodingKey::from_rsa_pem(&private("rsa.pem")).unwrap(),
        Algorithm::ES256 => EncodingKey::from_ec_pem(&private("p256.pem")).unwrap(),
        Algorithm::EdDSA => EncodingKey::from_ed_pem(&private("ed25519.pem")).unwrap(),
        _ => EncodingKey::from_secret(SECRET.as_bytes()),
    };
    Issuer { header: Header { kid: kid.map(str::to_owned), ..Header::new(algorithm) }, key }
}

impl Issuer {
    fn token(&self, claims: &Value) -> String {
        encode(&self.header, claims, &self.key).unwrap()
    }
}

/// Tokens by settings in which `{dir}` stands for a directory that holds `secret` and the public keys.
fn tokens(yaml: &str) -> Tokens {
    load(yaml).unwrap()
}

fn load(yaml: &str) -> Result<Tokens, Vec<String>> {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("secret"), format!("{SECRET}\n")).unwrap();
    fs::write(dir.path().join("empty"), "").unwrap();
    for name in ["rsa", "p256", "ed25519", "p384"] {
        let file = format!("{name}.pub.pem");
        fs::copy(keys().join(&file), dir.path().join(&file)).unwrap();
    }
    let yaml = yaml.replace("{dir}", dir.path().to_str().unwrap());
    let mut reading = Reading::default();
    let tokens = Tokens::load(&serde_yaml::from_str(&yaml).unwrap(), &mut reading);
    let mistakes = reading.take_mistakes();
    if mistakes.is_empty() { Ok(tokens) } else { Err(mistakes.iter().map(ToString::to_string).collect()) }
}

const HS256: &str = "keys: [{algorithm: HS256, file: '{dir}/secret'}]";

fn soon() -> u64 {
    get_current_timestamp() + 60
}

#[test]
fn every_algorithm_opens_with_its_own_key() {
    for (algorithm, name, file) in [
        (Algorithm::HS256, "HS256", "secret"),
        (Algorithm::HS384, "HS384", "secret"),
        (Algorithm::HS512, "HS512", "secret"),
        (Algorithm::RS256, "RS256", "rsa.pub.pem"),
        (Algorithm::ES256, "ES256", "p256.pub.pem"),
        (Algorithm::EdDSA, "EdDSA", "ed25519.pub.pem"),
    ] {
        let tokens = tokens(&format!("keys: [{{algorithm: {name}, file: '{{dir}}/{file}'}}]"));
        let claims = json!({"sub": "ann", "exp": soon(), "grants": ["chat:*"]});
        let token = issuer(algorithm, None).token(&claims);
        let identity = tokens.identify(&token).unwrap();
        assert_eq!(identity.user.as_deref(), Some("ann"), "{name}");
        assert_eq!(identity.grants.publish, identity.grants.subscribe);
        let (head, signature) = token.rsplit_once('.').unwrap();
        let forged = format!("{head}.{}", signature.chars().rev().collect::<String>());
        assert!(
            matches!(tokens.identify(&forged), Err(TokenError::Signature | TokenError::Base64)),
            "{name}"
        );
    }
}

#[test]
fn a_token_cannot_choose_its_algorithm() {
    // The classic: the public key, which everybody has, used as the secret of an HMAC.
    let tokens = tokens(
        "keys: [{algorithm: RS256, file: '{dir}/rsa.pub.pem'}, {kid: r, algorithm: RS256, file: '{dir}/rsa.pub.pem'}]",
    );
    let public = fs::read(keys().join("rsa.pub.pem")).unwrap();
    for kid in [None, Some("r")] {
        let confused = Issuer { key: EncodingKey::from_secret(&public), ..issuer(Algorithm::HS256, kid) };
        assert_eq!(tokens.identify(&confused.token(&json!({"sub": "eve"}))), Err(TokenError::Algorithm));
    }
    // {"alg":"none"} without a signature.
    let none = "eyJhbGciOiJub25lIn0.eyJzdWIiOiJldmUifQ.";
    assert_eq!(tokens.identify(none), Err(TokenError::UnknownAlgorithm));
}

#[test]
fn a_token_that_names_a_key_is_checked_by_that_key_only() {
    let named = "keys: [{kid: new, algorithm: HS256, file: '{dir}/secret'}, {kid: old, algorithm: RS256, file: '{dir}/rsa.pub.pem'}]";
    let tokens = tokens(named);
    let identify =
        |algorithm, kid| tokens.identify(&issuer(algorithm, kid).token(&json!({"sub": "ann"}))).map(drop);
    assert_eq!(identify(Algorithm::HS256, Some("new")), Ok(()));
    assert_eq!(identify(Algorithm::RS256, Some("old")), Ok(()));
    assert_eq!(identify(Algorithm::RS256, Some("new")), Err(TokenError::Algorithm));
    assert_eq!(identify(Algorithm::HS256, Some("older")), Err(TokenError::UnknownKey));
    assert_eq!(identify(Algorithm::HS256, None), Err(TokenError::NoKey));
}

#[test]
fn time_issuer_and_audience_are_checked_with_five_seconds_of_leeway() {
    let tokens = tokens(&format!("{{issuer: me, audience: you, {HS256}}}"));
    let issuer = issuer(Algorithm::HS256, None);
    let now = get_current_timestamp();
    let identify = |change: Value| {
        let mut claims = json!({"iss": "me", "aud": ["you", "them"], "exp": now + 60});
        claims.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        claims.as_object_mut().unwrap().retain(|_, value| !value.is_null());
        tokens.identify(&issuer.token(&claims)).map(|identity| identity.expires_at)
    };
    assert_eq!(identify(json!({})), Ok(Some(now + 60 + LEEWAY_SECONDS)));
    assert_eq!(identify(json!({"exp": null})), Ok(None), "a token without `exp` never ends");
    assert_eq!(identify(json!({"exp": now - 2, "nbf": now + 2})), Ok(Some(now - 2 + LEEWAY_SECONDS)));
    for (change, error) in [
        (json!({"exp": now - 10}), TokenError::Expired),
        (json!({"exp": "soon"}), TokenError::Claim { claim: "exp", expected: "a time in Unix seconds" }),
        (json!({"nbf": now + 30}), TokenError::NotYetValid),
        (json!({"iss": "other"}), TokenError::Issuer),
        (json!({"iss": null}), TokenError::Missing("iss")),
        (json!({"aud": "other"}), TokenError::Audience),
        (json!({"aud": null}), TokenError::Missing("aud")),
    ] {
        assert_eq!(identify(change.clone()), Err(error), "{change}");
    }
}

#[test]
fn grants_are_a_list_for_both_or_one_list_each() {
    let tokens = tokens(HS256);
    let issuer = issuer(Algorithm::HS256, None);
    let grants = |list: Value| {
        let identity = tokens.identify(&issuer.token(&json!({"grants": list})))?;
        let texts =
            |patterns: &[Pattern]| patterns.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
        Ok::<_, TokenError>((texts(&identity.grants.subscribe), texts(&identity.grants.publish)))
    };
    let pair = |subscribe: &str, publish: &str| Ok((subscribe.to_owned(), publish.to_owned()));
    assert_eq!(grants(json!(["a:*", "b"])), pair("a:* b", "a:* b"));
    assert_eq!(grants(json!({"subscribe": ["a"], "publish": ["b"]})), pair("a", "b"));
    assert_eq!(grants(json!({"subscribe": ["a"]})), pair("a", ""));
    assert_eq!(grants(json!(null)), pair("", ""));
    for bad in [json!("a"), json!([1]), json!(["a b"]), json!({"read": ["a"]}), json!({"publish": "a"})] {
        assert_eq!(grants(bad.clone()), Err(GRANTS), "{bad}");
    }
    let many = vec!["a"; MAX_PATTERNS + 1];
    assert!(matches!(grants(json!(many)), Err(TokenError::Claim { claim: "grants", .. })));
}

#[test]
fn a_token_with_the_old_claim_alone_is_refused_by_the_name_of_the_new_one() {
    let tokens = tokens(HS256);
    let identify = |claims: Value| tokens.identify(&issuer(Algorithm::HS256, None).token(&claims));
    for channels in [json!(["a"]), json!([]), json!(null)] {
        assert_eq!(identify(json!({"channels": channels})), Err(TokenError::NoGrants), "{channels}");
    }
    assert!(TokenError::NoGrants.to_string().contains("`grants`"));
    let both = identify(json!({"channels": ["a"], "grants": ["b"]})).unwrap();
    assert_eq!(both.grants.subscribe, ["b".parse().unwrap()], "the old one says nothing here");
}

#[test]
fn what_is_no_token_is_told_without_a_word_of_it() {
    let tokens = tokens(HS256);
    for (text, error) in [
        ("", TokenError::Parts),
        ("a", TokenError::Parts),
        ("eyJhbGciOiJIUzI1NiJ9.e30", TokenError::Parts),
        ("a.b.c.d", TokenError::Parts),
        ("....", TokenError::Parts),
        ("\u{0}\u{fffd}..", TokenError::Base64),
        ("..", TokenError::Json("header")),
        ("a.b.c", TokenError::Base64),
    ] {
        assert_eq!(tokens.identify(text), Err(error), "{text}");
    }
    let sub = issuer(Algorithm::HS256, None).token(&json!({"sub": 7}));
    assert_eq!(tokens.identify(&sub), Err(TokenError::Claim { claim: "sub", expected: "a string" }));
}

#[test]
fn a_short_or_marked_secret_is_warned_of_and_used() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("secret");
    let read = |algorithm: &str, secret: &[u8]| {
        fs::write(&file, secret).unwrap();
        let yaml = format!("keys: [{{algorithm: {algorithm}, file: '{}'}}]", file.display());
        let mut reading = Reading::default();
        Tokens::load(&serde_yaml::from_str(&yaml).unwrap(), &mut reading);
        let mistakes = reading.take_mistakes();
        let text =
            |all: Vec<sidecar_config::Mistake>| all.iter().map(ToString::to_string).collect::<Vec<_>>();
        (text(mistakes), text(reading.finish().0))
    };
    for (algorithm, least) in [("HS256", 32), ("HS384", 48), ("HS512", 64)] {
        let (mistakes, warnings) = read(algorithm, &vec![b'x'; least - 1]);
        assert!(mistakes.is_empty() && warnings.len() == 1, "{mistakes:?} {warnings:?}");
        let start = format!("auth.jwt.keys[0].file: `{}` has {} bytes", file.display(), least - 1);
        assert!(warnings[0].starts_with(&start), "{warnings:?}");
        assert_eq!(read(algorithm, &vec![b'x'; least]), (vec![], vec![]));
    }
    let (mistakes, warnings) = read("HS256", b"\xEF\xBB\xBFa secret of thirty-two bytes, yes");
    assert!(mistakes.is_empty() && warnings[0].contains("byte order mark"), "{mistakes:?} {warnings:?}");
    for name in ["rsa.pub.pem", "rsa.pem", "p256.pub.pem"] {
        let (mistakes, _) = read("HS256", &private(name));
        assert!(mistakes[0].contains("holds a PEM"), "{mistakes:?}");
    }
}

#[test]
fn a_key_that_does_not_fit_its_algorithm_is_a_mistake_with_its_place() {
    for (algorithm, file, part) in [
        ("RS256", "p256.pub.pem", "holds no RSA key"),
        ("RS256", "secret", "holds no RSA key"),
        ("ES256", "p384.pub.pem", "holds no P-256 key"),
        ("ES256", "ed25519.pub.pem", "holds no P-256 key"),
        ("EdDSA", "rsa.pub.pem", "holds no Ed25519 key"),
        ("HS256", "empty", "is empty"),
        ("HS256", "missing", "failed to read"),
    ] {
        let told = load(&format!("keys: [{{algorithm: {algorithm}, file: '{{dir}}/{file}'}}]")).unwrap_err();
        assert!(told[0].starts_with("auth.jwt.keys[0].file: ") && told[0].contains(part), "{told:?}");
    }
    let twice = "keys: [{kid: a, algorithm: HS256, file: '{dir}/secret'}, {kid: a, algorithm: HS256, file: '{dir}/secret'}]";
    assert!(load(twice).unwrap_err()[0].starts_with("auth.jwt.keys[1].kid: `a` is listed twice"));
}

/// A token of these texts, signed by the tests' secret, whatever they are.
fn signed(header: &str, claims: &str) -> String {
    let text = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
    let key = EncodingKey::from_secret(SECRET.as_bytes());
    let signature = jsonwebtoken::crypto::sign(text.as_bytes(), &key, Algorithm::HS256).unwrap();
    format!("{text}.{signature}")
}

#[test]
fn each_check_that_fails_has_a_text_of_its_own() {
    const HEADER: &str = r#"{"alg":"HS256"}"#;
    let tokens = tokens(&format!("{{issuer: me, audience: you, requireExp: true, {HS256}}}"));
    let soon = soon();
    let good = format!(r#""iss":"me","aud":"you","exp":{soon}"#);
    assert!(tokens.identify(&signed(HEADER, &format!("{{{good}}}"))).is_ok());
    let mut texts = std::collections::HashSet::new();
    for (header, claims, error) in [
        (r#"{"alg":"HS256","crit":["b64"],"b64":false}"#, format!("{{{good}}}"), TokenError::Critical),
        (r#"{"alg":"HS256","crit":[]}"#, format!("{{{good}}}"), TokenError::Critical),
        (r#"{"alg":"HS257"}"#, format!("{{{good}}}"), TokenError::UnknownAlgorithm),
        (r#"{"alg":"none"}"#, format!("{{{good}}}"), TokenError::UnknownAlgorithm),
        (r#"{"typ":"JWT"}"#, format!("{{{good}}}"), TokenError::NoAlgorithm),
        (r#"{"alg":"RS256"}"#, format!("{{{good}}}"), TokenError::Algorithm),
        (r#"{"alg":"HS256","kid":7}"#, format!("{{{good}}}"), TokenError::KeyName),
        (r#"{"alg":"HS256","kid":"other"}"#, format!("{{{good}}}"), TokenError::UnknownKey),
        (r#"{"alg":"HS256","alg":"HS256"}"#, format!("{{{good}}}"), TokenError::RepeatedParameter),
        (r#"["HS256"]"#, format!("{{{good}}}"), TokenError::Json("header")),
        (HEADER, "[]".to_owned(), TokenError::Json("payload")),
        (HEADER, format!(r#"{{{good},"exp":9999999999}}"#), TokenError::RepeatedClaim(Some("exp"))),
        (HEADER, format!(r#"{{{good},"x":1,"\u0078":2}}"#), TokenError::RepeatedClaim(None)),
        (HEADER, r#"{"iss":"me","aud":"you"}"#.to_owned(), TokenError::Missing("exp")),
        (HEADER, r#"{"iss":"me","aud":"you","exp":null}"#.to_owned(), TokenError::Missing("exp")),
        (
            HEADER,
            format!(r#"{{"iss":"me","aud":7,"exp":{soon}}}"#),
            TokenError::Claim { claim: "aud", expected: "a string or a list of strings" },
        ),
        (
            HEADER,
            format!(r#"{{"iss":"me","aud":["you",7],"exp":{soon}}}"#),
            TokenError::Claim { claim: "aud", expected: "a string or a list of strings" },
        ),
        (
            HEADER,
            format!(r#"{{"iss":["me"],"aud":"you","exp":{soon}}}"#),
            TokenError::Claim { claim: "iss", expected: "a string" },
        ),
    ] {
        assert_eq!(tokens.identify(&signed(header, &claims)), Err(error.clone()), "{header} {claims}");
        texts.insert(error.to_string());
    }
    assert_eq!(texts.len(), 14, "{texts:#?}");
    let token = signed(HEADER, &format!("{{{good}}}"));
    let (text, signature) = token.rsplit_once('.').unwrap();
    assert_eq!(tokens.identify(&format!("{text}.{signature}=")), Err(TokenError::Padding));
    assert_eq!(tokens.identify(&format!("{text}=.{signature}")), Err(TokenError::Padding));
    assert_eq!(tokens.identify(&format!("{text}.{}", &signature[4..])), Err(TokenError::Signature));
}

#[test]
fn a_changed_value_under_the_same_name_is_a_rotation_and_the_old_one_is_good_for_a_while() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("secret");
    let entry = |kid: &str| format!("{{kid: {kid}, algorithm: HS256, file: '{}'}}", file.display());
    let load = |secret: &str, keys: &str| {
        fs::write(&file, secret).unwrap();
        let mut reading = Reading::default();
        Tokens::load(&serde_yaml::from_str(&format!("keys: [{keys}]")).unwrap(), &mut reading)
    };
    let sign = |kid: &str, secret: &str| {
        let key = EncodingKey::from_secret(secret.as_bytes());
        Issuer { key, ..issuer(Algorithm::HS256, Some(kid)) }.token(&json!({"sub": "ann"}))
    };
    let secrets = ["first", "second", "third"].map(|name| format!("{name}: thirty-two bytes and some more"));
    let [first, second, third] = &secrets;
    let began = Instant::now();
    let before = load(first, &[entry("a"), entry("b")].join(", "));
    let mut now = load(second, &entry("a"));
    now.succeed(&before, began);
    assert!(now.ids().is_subset(&before.ids()) && now.ids().len() == 1, "`b` is gone");
    assert!(now.identify(&sign("a", second)).is_ok());
    let rotated = now.identify(&sign("a", first)).unwrap();
    assert_eq!(
        rotated.grants.key,
        before.identify(&sign("a", first)).unwrap().grants.key,
        "of the same entry"
    );
    assert_eq!(now.identify(&sign("b", first)), Err(TokenError::UnknownKey));
    // The same value again is no rotation, and keeps what was good.
    let mut again = load(second, &entry("a"));
    again.succeed(&now, began);
    assert!(again.identify(&sign("a", first)).is_ok());
    // Once its time is over, the old one is good no more.
    let Some(late) = began.checked_sub(std::time::Duration::from_secs(601)) else { return };
    let mut over = load(third, &entry("a"));
    over.succeed(&load(second, &entry("a")), late);
    assert_eq!(over.identify(&sign("a", second)), Err(TokenError::Signature));
    assert!(over.identify(&sign("a", third)).is_ok());
}
