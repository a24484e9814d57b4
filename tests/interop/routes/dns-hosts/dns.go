// Package dns stands for lego's: a hundred DNS hosts, by which Traefik could have certificates of its own. The tests ask
// it for none, and some of the modules that the hosts need are not to be had.
package dns

import (
	"errors"

	"github.com/go-acme/lego/v5/challenge"
)

// NewDNSChallengeProviderByName knows no host.
func NewDNSChallengeProviderByName(name string) (challenge.Provider, error) {
	return nil, errors.New("this Traefik is built without DNS hosts: " + name)
}
