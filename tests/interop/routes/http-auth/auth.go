// Package auth stands for the password protection that Traefik can put before a route: its fork of that package is not
// to be had. The tests protect nothing; whatever asks for protection here is refused to everybody.
package auth

import "net/http"

// SecretProvider gives the hash of a user's password.
type SecretProvider func(user, realm string) string

// BasicAuth would ask for a password.
type BasicAuth struct {
	Realm   string
	Secrets SecretProvider
}

// RequireAuth refuses.
func (*BasicAuth) RequireAuth(w http.ResponseWriter, _ *http.Request) {
	w.WriteHeader(http.StatusUnauthorized)
}

// CheckSecret finds no password right.
func CheckSecret(_, _ string) bool { return false }

// DigestAuth would ask for the digest of one.
type DigestAuth struct{}

// NewDigestAuthenticator makes one that refuses.
func NewDigestAuthenticator(string, SecretProvider) *DigestAuth { return &DigestAuth{} }

// CheckAuth knows nobody.
func (*DigestAuth) CheckAuth(*http.Request) (string, *string) { return "", nil }

// RequireAuth refuses.
func (*DigestAuth) RequireAuth(w http.ResponseWriter, _ *http.Request) {
	w.WriteHeader(http.StatusUnauthorized)
}

// RequireAuthStale refuses too.
func (*DigestAuth) RequireAuthStale(w http.ResponseWriter, _ *http.Request) {
	w.WriteHeader(http.StatusUnauthorized)
}

// DigestAuthParams reads nothing.
func DigestAuthParams(string) map[string]string { return nil }
