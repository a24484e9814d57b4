#!/usr/bin/env python3
"""Makes testdata/hostile/: what OpenSSL 3.0, and so generate.sh, cannot make.

The result is committed, so this runs only to add a case (needs Python's cryptography 47 or later; keys are new each time):
  python3 testdata/hostile.py

ml-dsa-65.pem   a post-quantum key (FIPS 204)
loop.pem        a leaf, and two authorities that have signed each other

No key here protects anything, and none is kept.
"""

import datetime
import pathlib

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, mldsa
from cryptography.hazmat.primitives.serialization import Encoding

DIRECTORY = pathlib.Path(__file__).parent / "hostile"
SINCE = datetime.datetime(2026, 1, 1)
UNTIL = datetime.datetime(2026, 4, 1)


def name(text):
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])


def certificate(subject, key, issuer, signer, authority):
    builder = (
        x509.CertificateBuilder()
        .subject_name(name(subject))
        .issuer_name(name(issuer))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(SINCE)
        .not_valid_after(UNTIL)
        .add_extension(x509.BasicConstraints(authority, None), critical=True)
    )
    if not authority:
        names = x509.SubjectAlternativeName([x509.DNSName(subject)])
        builder = builder.add_extension(names, critical=False)
    algorithm = hashes.SHA256() if isinstance(signer, ec.EllipticCurvePrivateKey) else None
    return builder.sign(signer, algorithm).public_bytes(Encoding.PEM)


quantum = mldsa.MLDSA65PrivateKey.generate()
(DIRECTORY / "ml-dsa-65.pem").write_bytes(
    certificate("quantum.example", quantum, "quantum.example", quantum, False)
)

leaf, left, right = (ec.generate_private_key(ec.SECP256R1()) for _ in range(3))
(DIRECTORY / "loop.pem").write_bytes(
    certificate("loop.example", leaf, "Left", left, False)
    + certificate("Left", left, "Right", right, True)
    + certificate("Right", right, "Left", left, True)
)
