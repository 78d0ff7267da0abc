// Package batch holds what the mill hands work around with. It knows nothing of
// cryptography and imports nothing of ours.
package batch
