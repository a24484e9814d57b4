//! Certificates built octet by octet, as no library would build them. Their signatures are nonsense.

/// Tag, length and content (X.690, 8.1).
pub fn tlv(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = content.len().to_be_bytes();
    let digits = &length[length.iter().take_while(|byte| **byte == 0).count()..];
    let mut der = vec![tag];
    if content.len() < 0x80 {
        der.extend(content.len().to_be_bytes().last());
    } else {
        der.push(0x80 | digits.len().to_be_bytes()[7]);
        der.extend(digits);
    }
    der.extend(content);
    der
}

fn sequence(parts: &[&[u8]]) -> Vec<u8> {
    tlv(0x30, &parts.concat())
}

/// The parts that a test may replace.
pub struct Forged {
    /// DER of `issuer`.
    pub issuer: Vec<u8>,
    /// DER of `subject`.
    pub subject: Vec<u8>,
    /// The two times, each with its tag.
    pub validity: [Vec<u8>; 2],
    /// Content octets of the serial number.
    pub serial: Vec<u8>,
    /// The content of `AlgorithmIdentifier`, the claimed signature algorithm.
    pub algorithm: Vec<u8>,
    /// `subjectPublicKeyInfo`, DER.
    pub key: Vec<u8>,
    /// Each extension as a whole.
    pub extensions: Vec<Vec<u8>>,
}

/// A distinguished name with one common name of this string type, given by its tag.
pub fn common_name(tag: u8, text: &[u8]) -> Vec<u8> {
    let attribute = sequence(&[b"\x06\x03\x55\x04\x03", &tlv(tag, text)]);
    sequence(&[&tlv(0x31, &attribute)])
}

/// An extension of `id-ce` by its last number (RFC 5280, 4.2.1).
pub fn extension(number: u8, value: &[u8]) -> Vec<u8> {
    let oid = [0x06, 0x03, 0x55, 0x1d, number];
    sequence(&[&oid, &tlv(0x04, value)])
}

/// The SAN of these entries, each with its tag: `\x82` is a DNS name.
pub fn alternative_names<'a>(entries: impl IntoIterator<Item = (u8, &'a [u8])>) -> Vec<u8> {
    let entries = entries.into_iter().map(|(tag, text)| tlv(tag, text));
    extension(17, &tlv(0x30, &entries.collect::<Vec<_>>().concat()))
}

/// The base point of P-256, uncompressed.
pub const POINT: &[u8] = b"\x04\x6b\x17\xd1\xf2\xe1\x2c\x42\x47\xf8\xbc\xe6\xe5\x63\xa4\x40\xf2\x77\x03\x7d\x81\
    \x2d\xeb\x33\xa0\xf4\xa1\x39\x45\xd8\x98\xc2\x96\x4f\xe3\x42\xe2\xfe\x1a\x7f\x9b\x8e\xe7\xeb\x4a\x7c\x0f\x9e\x16\x2b\
    \xce\x33\x57\x6b\x31\x5e\xce\xcb\xb6\x40\x68\x37\xbf\x51\xf5";

impl Default for Forged {
    fn default() -> Self {
        Self {
            issuer: common_name(0x0c, b"Forged CA"),
            subject: common_name(0x0c, b"forged"),
            validity: [b"260101000000Z", b"360101000000Z"].map(|time| tlv(0x17, time)),
            serial: vec![5],
            // ecdsa-with-SHA256
            algorithm: b"\x06\x08\x2a\x86\x48\xce\x3d\x04\x03\x02".to_vec(),
            key: public_key(POINT),
            extensions: Vec::new(),
        }
    }
}

/// `subjectPublicKeyInfo` of a point on P-256.
pub fn public_key(point: &[u8]) -> Vec<u8> {
    let algorithm = sequence(&[
        b"\x06\x07\x2a\x86\x48\xce\x3d\x02\x01",
        b"\x06\x08\x2a\x86\x48\xce\x3d\x03\x01\x07",
    ]);
    sequence(&[&algorithm, &tlv(0x03, &[b"\0", point].concat())])
}

impl Forged {
    /// The certificate in DER.
    #[must_use]
    pub fn der(&self) -> Vec<u8> {
        let algorithm = tlv(0x30, &self.algorithm);
        let extensions = tlv(0xa3, &tlv(0x30, &self.extensions.concat()));
        let tbs = sequence(&[
            b"\xa0\x03\x02\x01\x02",
            &tlv(0x02, &self.serial),
            &algorithm,
            &self.issuer,
            &tlv(0x30, &self.validity.concat()),
            &self.subject,
            &self.key,
            &extensions,
        ]);
        sequence(&[&tbs, &algorithm, &tlv(0x03, b"\0\x30\0")])
    }

    /// The certificate in PEM.
    #[must_use]
    pub fn pem(&self) -> String {
        crate::certificate::pem::encode("CERTIFICATE", &self.der()).to_string()
    }
}
