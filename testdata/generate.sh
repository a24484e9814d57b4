#!/bin/sh
# Makes testdata/certificates/: certificates and keys, good, odd and broken, and what OpenSSL reads in them.
#
# The result is committed, so this runs only to add a case (needs OpenSSL 3 and awk; keys are new each time):
#   sh testdata/generate.sh
#
# facts.tsv       file, SHA-256, notBefore, notAfter, serial, subjectPublicKeyInfo (SHA-256) of the first certificate
# keys.tsv        file, subjectPublicKeyInfo (SHA-256)
# Both come from OpenSSL and not from our own code, so that the tests compare with a second opinion.
# No key here protects anything.
set -eu
cd "$(dirname "$0")/certificates"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
rm -f ./*
export LC_ALL=C

cat > "$work/ca.cnf" <<END
[ca]
default_ca = c
[c]
database = $work/index
rand_serial = yes
new_certs_dir = $work
default_md = sha256
policy = any
unique_subject = no
email_in_dn = yes
[any]
C = optional
O = optional
CN = optional
[req]
distinguished_name = dn
string_mask = \${ENV::MASK}
[dn]
END
export MASK=utf8only

ec() { openssl genpkey -quiet -algorithm EC -pkeyopt "ec_paramgen_curve:$1" -out "$2"; }

# issue NAME KEY SUBJECT START END SIGNER EXTENSIONS: SIGNER is a pair in $work, or "self".
issue() {
    printf '%b\n' "$7" > "$work/ext"
    openssl req -new -config "$work/ca.cnf" -key "$2" -subj "$3" -out "$work/csr"
    : > "$work/index"
    if [ "$6" = self ]; then by="-selfsign -keyfile $2"; else by="-cert $work/$6.pem -keyfile $work/$6.key"; fi
    # shellcheck disable=SC2086
    openssl ca -batch -notext -config "$work/ca.cnf" $by -preserveDN -in "$work/csr" \
        -startdate "$4" -enddate "$5" -extfile "$work/ext" -out "$1" 2> "$work/log" || { cat "$work/log"; exit 1; }
}

ca='basicConstraints=critical,CA:TRUE\nkeyUsage=critical,keyCertSign\nsubjectKeyIdentifier=hash'
aki='authorityKeyIdentifier=keyid'
from=20260101000000Z until=20260401000000Z

ec P-384 "$work/root.key"
issue "$work/root.pem" "$work/root.key" '/O=Test/CN=Test Root' 20200101000000Z 20400101000000Z self "$ca"
ec P-256 "$work/middle.key"
issue "$work/middle.pem" "$work/middle.key" '/O=Test/CN=Test Intermediate' 20200101000000Z 20350101000000Z root "$ca\n$aki"
ec P-256 "$work/staging.key"
issue "$work/staging.pem" "$work/staging.key" '/O=(STAGING) Test/CN=(STAGING) Wannabe' 20200101000000Z 20350101000000Z root "$ca"
cp "$work/root.pem" root.pem
cp "$work/middle.pem" intermediate.pem

# --- the pair that most cases are variations of
ec P-256 good.key
issue "$work/leaf.pem" good.key '/CN=shop.example.com' $from $until middle \
    "subjectAltName=DNS:Shop.Example.com,DNS:*.shop.example.com,IP:10.0.0.1,IP:2001:db8::1\n$aki"
leaf=$work/leaf.pem
cat "$leaf" intermediate.pem > good.pem

# --- the text around it
tr '\n' '\t' < good.pem | sed 's/\t/\r\n/g' > crlf.pem
sed 's/$/ \t /' good.pem > trailing-blanks.pem
sed 's/^/    /' good.pem > indented.pem
awk '{ printf "%s", /^-----END/ ? $0 : $0 "\n" }' good.pem > glued.pem
awk '/^-/ { if (/END/) print ""; print; next } { printf "%s", $0 }' good.pem > unwrapped.pem
awk '/^-/ { if (b != "") { while (b != "") { print substr(b, 1, 76); b = substr(b, 77) } } print; next } { b = b $0 }' \
    good.pem > columns-76.pem
printf '%s' "$(cat good.pem)" > no-last-newline.pem
{ openssl x509 -in "$leaf" -text; echo '# the intermediate'; cat intermediate.pem; } > with-text.pem
{ printf '\357\273\277'; cat good.pem; } > byte-order-mark.pem
cat good.key good.pem > key-first.pem
cat good.pem good.key > key-last.pem
sed 's/ CERT/ X509 CERT/' "$leaf" > x509-label.pem
openssl x509 -in "$leaf" -trustout -addtrust serverAuth -out trusted.pem
openssl x509 -in "$leaf" -outform DER -out bare.der
{ sed 's/^/# /' root.pem; cat "$leaf"; } > commented-out.pem

# --- times
for years in 1950:1960 2049:2049 2050:2050 2026:9999; do
    issue "years-${years%:*}-${years#*:}.pem" good.key '/CN=years.example.com' "${years%:*}0101000000Z" "${years#*:}1231235959Z" middle \
        "subjectAltName=DNS:years.example.com"
done

# --- serial numbers
openssl req -new -config "$work/ca.cnf" -key good.key -subj /CN=serial.example.com -out "$work/serial.csr"
serial() {
    openssl x509 -req -in "$work/serial.csr" -CA intermediate.pem -CAkey "$work/middle.key" -days 3650 \
        -set_serial "$2" -out "serial-$1.pem" 2> /dev/null
}
serial negative -5
serial zero 0
serial leading-zero 0x8765
serial 20-bytes 0x7fffffffffffffffffffffffffffffffffffffff
serial 21-bytes 0xffffffffffffffffffffffffffffffffffffffff
serial 40-bytes 0x01020304050607080900010203040506070809000102030405060708090001020304050607080900

# --- names and extensions
issue no-common-name.pem good.key '/O=Nobody' $from $until middle 'subjectAltName=DNS:only.example.com'
issue common-name-only.pem good.key '/O=Old/CN=Old.Example.com' $from $until middle 'keyUsage=digitalSignature'
issue no-name.pem good.key '/CN=Not A Host Name' $from $until middle 'keyUsage=digitalSignature'
issue empty-san.pem good.key '/CN=ignored.example.com' $from $until middle '2.5.29.17=DER:30:00'
issue broken-san.pem good.key '/CN=ignored.example.com' $from $until middle '2.5.29.17=DER:30:7f:82'
issue unknown-critical.pem good.key '/CN=a.example.com' $from $until middle \
    '1.2.3.4.5=critical,DER:05:00\nsubjectAltName=critical,DNS:critical.example.com'
issue other-names.pem good.key '/CN=a.example.com' $from $until middle \
    'subjectAltName=email:a@example.com,URI:https://example.com,dirName:d,otherName:1.2.3;UTF8:x,DNS:_sip.example.com,DNS:last.example.com\n[d]\nCN=x'
many=$(awk 'BEGIN { for (i = 0; i < 600; i++) printf "%sDNS:host-%d.example.com", i ? "," : "", i }')
issue many-names.pem good.key '/CN=a.example.com' $from $until middle "subjectAltName=$many"
MASK=MASK:2048 issue bmp-string.pem good.key '/O=BMP/CN=bmp.example.com' $from $until middle 'keyUsage=digitalSignature'
issue self-signed.pem good.key '/CN=placeholder.example.com' $from $until self 'subjectAltName=DNS:placeholder.example.com'
issue staging.pem good.key '/CN=shop.example.com' $from $until staging 'subjectAltName=DNS:shop.example.com'
cat "$work/staging.pem" >> staging.pem
ec P-256 "$work/twin.key"
issue "$work/twin.pem" "$work/twin.key" '/O=Test/CN=Test Intermediate' 20200101000000Z 20350101000000Z root "$ca"
cp "$work/twin.pem" other-intermediate-of-the-same-name.pem

# --- keys: files of every form, and a certificate for those that are not made by us
ec P-384 p384.key
ec P-521 p521.key
openssl genpkey -quiet -algorithm ED25519 -out ed25519.key
openssl genpkey -quiet -algorithm ED448 -out ed448.key
openssl genpkey -quiet -algorithm RSA -pkeyopt rsa_keygen_bits:2048 -out rsa-2048.key
openssl genpkey -quiet -algorithm RSA -pkeyopt rsa_keygen_bits:3072 -out rsa-3072.key
openssl genpkey -quiet -algorithm RSA-PSS -pkeyopt rsa_keygen_bits:2048 -out rsa-pss.key
for kind in p384 p521 ed25519 ed448 rsa-2048 rsa-3072 rsa-pss; do
    issue "$kind.pem" "$kind.key" '/CN=kind.example.com' $from $until middle 'subjectAltName=DNS:kind.example.com'
done
openssl pkey -in rsa-2048.key -traditional -out pkcs1.key
openssl pkey -in good.key -traditional -out sec1.key
openssl pkey -in p384.key -traditional -out sec1-p384.key
openssl ecparam -name prime256v1 -genkey -out ec-parameters.key
openssl pkcs8 -topk8 -nocrypt -in good.key -outform DER -out pkcs8.der
openssl pkey -in good.key -outform DER -out sec1.der
sed 's/$/\r/' good.key > crlf.key
sed 's/^/  /; s/$/  /' good.key > indented.key
openssl pkey -in good.key -aes128 -passout pass:test -out encrypted.key
openssl ec -in good.key -aes128 -passout pass:test -out encrypted-legacy.key 2> /dev/null

# --- broken ones, by what is wrong
: > broken-empty.pem
printf ' \n\t\n' > broken-blank.pem
echo 'hello, I am no certificate' > broken-text.pem
cp good.key broken-only-key.pem
sed '/END/,$d' "$leaf" > broken-truncated.pem
sed '3s/^..../????/' "$leaf" > broken-base64.pem
awk '{ printf "%s\\n", $0 }' "$leaf" > broken-backslash-n.pem
sed '5d' "$leaf" > broken-line-lost.pem
base64 < "$leaf" > broken-encoded-twice.pem
openssl x509 -in "$leaf" -outform DER | head -c 100 > broken-cut.der
openssl req -in "$work/serial.csr" -out broken-request.pem
{ cat "$leaf"; sed '5d' intermediate.pem; } > second-broken.pem

# --- what OpenSSL reads
hash() { openssl dgst -sha256 -r | cut -c1-64; }
stamp() { date -u -d "$1" +%Y-%m-%dT%H:%M:%SZ; }
for file in *.pem *.der; do
    case $file in broken-* | pkcs8.der | sec1.der | byte-order-mark.pem | indented.pem | unwrapped.pem | glued.pem) continue ;; esac
    show() { openssl x509 -in "$file" -noout "$@" | sed 's/^[^=]*=//'; }
    printf '%s\t%s\t%s\t%s\t%s\t%s\n' "$file" "$(show -fingerprint -sha256 | tr -d : | tr A-F a-f)" \
        "$(stamp "$(show -startdate)")" "$(stamp "$(show -enddate)")" "$(show -serial | tr -d '\\\n')" \
        "$(openssl x509 -in "$file" -noout -pubkey | openssl pkey -pubin -outform DER | hash)"
done > facts.tsv
for file in *.key pkcs8.der sec1.der; do
    case $file in encrypted* | ed448.key | rsa-pss.key | indented.key) continue ;; esac
    printf '%s\t%s\n' "$file" "$(openssl pkey -in "$file" -pubout -outform DER | hash)"
done > keys.tsv
