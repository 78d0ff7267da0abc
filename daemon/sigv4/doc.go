// Package sigv4 says who is calling: it verifies AWS Signature Version 4 in the
// Authorization header, for one service, over requests whose body is in memory.
//
// # What a request must have
//
// One Authorization header of the form
//
//	AWS4-HMAC-SHA256 Credential=<id>/<yyyymmdd>/<region>/kms/aws4_request, SignedHeaders=a;b, Signature=<64 hex>
//
// with each parameter once, separated by commas and optional white space.
// SignedHeaders is lower-case, sorted and without repeats; every header it
// names is in the request. Host, X-Amz-Date and X-Amz-Target, and
// X-Amz-Security-Token when it is sent, are among them and are in the request
// exactly once. Other signed headers may repeat; their values are joined with
// commas in order of appearance. The time comes from X-Amz-Date alone: no KMS
// client signs a Date header instead, so that alternative is not taken.
//
// The scope's date is the day of X-Amz-Date, its region one that is served, its
// service this one. X-Amz-Date is at most [MaxSkew] away from the server's
// clock, compared in whole seconds, the unit of both the header and the texts;
// a difference of exactly [MaxSkew] passes. X-Amz-Content-Sha256, when present,
// is the lower-case hex SHA-256 of the body; UNSIGNED-PAYLOAD and STREAMING-
// values belong to S3 and are refused.
//
// [Options.NoTarget] is for a service whose requests have no X-Amz-Target; a
// [Signer] makes requests to such a service.
//
// # What is not there
//
// SigV4a and presigned requests (X-Amz-Signature and its kin in the query) are
// refused with IncompleteSignatureException and a text that says so. A session
// token is refused with UnrecognizedClientException, as AWS refuses one it did
// not issue.
//
// # Order of the checks
//
// The cheap structural checks come first, then the look-up of the access key,
// then the clock, then the signature. Nothing of the body is looked at but its
// hash, and that only for a known access key and a fresh request.
//
// An unknown access key is answered sooner than a wrong signature. That tells
// an attacker nothing: the two answers carry different codes, as AWS's do, so
// nobody needs a stopwatch to tell them apart. An unknown and a disabled key get
// the same answer. The signature itself is compared in constant time.
//
// # The canonical request
//
// Canonicalisation follows AWS's documents and its published test suite where
// they leave no choice. Where they do, one way is taken:
//
//   - Path: empty segments and dot segments are removed, then every byte outside
//     the unreserved set is percent-encoded, also a percent sign, since what
//     arrives is already encoded once (services other than S3 encode twice).
//     A trailing slash stays only if the path as sent ends with one.
//   - Query: each name and value is percent-decoded once and encoded again; a
//     percent sign that starts no valid escape stands for itself, and so does a
//     plus sign. A parameter without "=" has an empty value; empty pieces
//     between ampersands vanish. Pairs are sorted by encoded name, then value.
//   - Header values: outer white space is cut and runs of spaces become one. A
//     run of white space with a line break in it (obsolete folding, RFC 9112
//     section 5.2) becomes one space, so a value never spans two lines of the
//     canonical request. Other tabs stay.
//
// Two requests with the same canonical request are one to a signature: "a  b"
// and "a b", or a header sent twice and once with a comma. Whoever acts on a
// header must not take different meanings from such twins.
//
// # Secrets
//
// Derived signing keys are kept in a bounded cache (see keycache.go), only after
// a signature verified with them, and wiped when they leave it. A refused
// request is logged at debug level (anybody can cause one) with the request's
// id, the error's code and, when it came that far, the hex SHA-256 of its
// canonical request, which is what one compares with a client's debug output.
// No signature and nothing derived from a secret is ever logged or answered.
package sigv4
