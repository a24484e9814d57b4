// Package ext is what Traefik's own module has in its place: members that other products add to its configuration.
// Traefik's module leaves it out, as it is a module of its own that no proxy serves.
package ext

// HTTP adds nothing.
type HTTP struct{}

// DeepCopyInto has nothing to copy.
func (*HTTP) DeepCopyInto(*HTTP) {}

// Router adds nothing.
type Router struct{}

// DeepCopyInto has nothing to copy.
func (*Router) DeepCopyInto(*Router) {}
