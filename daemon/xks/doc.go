// Package xks is both sides of the AWS KMS External Key Store proxy protocol,
// version 1: the KMS that keeps keys at an external key manager, and the proxy in
// front of one.
//
// # The protocol
//
// Four calls, each a POST with a JSON body, signed with Signature Version 4 for the
// service kms-xks-proxy:
//
//	<path>/health                 is anybody there
//	<path>/keys/<id>/metadata     what kind of key is that
//	<path>/keys/<id>/encrypt      AES-GCM with associated data
//	<path>/keys/<id>/decrypt      and back
//
// where <path> ends in /kms/xks/v1. protocol.go holds messages and their codec,
// for both sides; errors.go the errors of the protocol and what a caller of KMS
// is told of them.
//
// # The KMS side
//
// A [Transport] holds what all external key stores share: connections, roots of
// trust, the appliance's own map of hosts. A [Client] is one key store's way to its
// proxy. [NewKey] makes the engine.Key of a KMS key in such a store, which encrypts
// twice; engine/external.go has the layers.
//
// A call has 250 ms for everything: a place among the calls at once, name and
// connection, handshake, answer. It is made once. Only when a kept connection turns
// out to have been closed by the proxy before it answered, the call goes over
// another one, within the same time. Encrypt and Decrypt change nothing at the
// proxy, so that is harmless. Redirects are not followed, HTTP proxies of the
// environment not used, and connections are HTTP/1.1: one that is lost then
// costs the calls that were on it, where HTTP/2 would let all others time
// out on it too.
//
// An endpoint is a host name on port 443. Addresses that only this machine or its
// link can have meant (loopback, link-local, unspecified, multicast) are refused
// unless the appliance's configuration maps the host, since whoever may create a
// key store chooses the name.
//
// # The proxy side
//
// A [Server] answers real AWS KMS, or another Keymill, with keys of this
// appliance. Its configuration file (file.go) names path prefixes, each with up to
// two credentials and the keys that may be reached through it; nothing else can be.
// serve.go has the order of the checks, seal.go how a ciphertext is laid out.
package xks
