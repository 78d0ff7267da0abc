// Package quota says how often a caller may call: AWS KMS's request quotas per
// account, region and class of operation, those of custom key stores, and a
// limit per key that AWS does not have. Resource quotas (how many keys, aliases
// and so on) are values here; the operations that make such things compare.
//
// # What is counted
//
// Every authenticated request takes units from the account's bucket for its
// [Class], in the request's region: dry runs and requests that are refused later
// too. Whose quota it is, is the calling account's, also for another account's
// key. Cryptographic operations share a bucket per kind of key, data key pairs
// have one per KeyPairSpec, and every other operation has its own. A bulk request
// takes as many units as it has items, all of them or none.
//
// # How it is counted
//
// By the generic cell rate algorithm (ITU-T I.371, annex A), which is a token
// bucket in one number: the theoretical arrival time, when the bucket would be
// full again. So a bucket is one atomic integer, a decision is a few additions
// ([Limit.Decide], pure), and taking is a compare-and-swap. In any stretch of
// time t a bucket admits at most burst + rate*t units.
//
// AWS states rates only, and says that bursts within a second may be refused.
// Here a burst is a second's worth of the rate, whole units, at least one: a
// client that stays within the rate, second by second, is never refused for being
// bursty for longer than one second. The limit per key has a burst of its own.
// A request for more units than the burst can never be admitted.
//
// # Clocks
//
// Buckets count nanoseconds since the limiter was made, by the monotonic clock
// where a time has a reading of it, so setting the wall clock changes nothing.
// Requests bring the time they began at: they may reach a bucket out of order,
// and one that comes late is judged as if it had come in time or more strictly.
// A clock that went back by more than [maxStale] is followed: the bucket is empty
// then and fills at its rate.
//
// # Profiles
//
// A [Profile] is the table of rates. Three kinds can be named: aws, none, and a
// file that changes one of those two; see [Parse] for its form. A profile and
// the [Limiter] made from it never change; to put another profile in force, put
// another limiter in place of the old one. Its buckets start full.
package quota
