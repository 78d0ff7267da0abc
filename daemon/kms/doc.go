// Package kms is the operation table and the pipeline: what every AWS KMS
// request meets between the socket and the cryptography.
//
// # A request's way
//
//	route        X-Amz-Target picks a row of the operation table
//	authenticate daemon/sigv4 names the caller; nothing is parsed before
//	admit        how often may the account; daemon/quota
//	decode       daemon/wire, strict; then the model's constraints
//	resolve      the key identifier becomes an immutable view of one KMS key
//	admit        the account again, where the quota is that of the key's kind
//	authorise    may the caller; see (*exchange).authorise for what holds today
//	admit        how often may the key be used; admit.go says why in three places
//	judge        key state and key usage, from tables
//	run          the one function that is special to the operation
//	audit        its place is here, before the answer; nothing is recorded yet
//	answer       encode, or map the error once for all operations
//
// An operation is one row (table.go) and one function. What rows have in
// common is never written in a function: an operation that needs the key's
// state checked says so in its row.
//
// # Memory of a request
//
// All state of a request lives in an exchange, which is pooled. Strings and
// blobs of the decoded input are views on the request's body or on the
// decoder's scratch; whatever outlives the request is cloned. Scratch that can
// hold plaintext is wiped before the exchange goes back to the pool.
//
// # What changes and who sees it
//
// A key view is immutable. Every change commits to the key store first and
// then drops the views it made stale, before it is acknowledged, so a request
// that starts after the acknowledgement sees the change. A request that was
// under way may still finish on the old view.
package kms
