// Package daemon is the process around the KMS service: its configuration, its
// listeners, its data directory, its first start and its end.
//
// # A server's life
//
// [New] checks the configuration and loads the certificate. [Server.Run] binds
// the addresses, opens the root of trust and the store, makes the root principal
// on a first start, serves, and at the end of its context stops: it closes the
// listener, waits for what is in flight, and closes the store. Everything that
// is acknowledged is on disk already, so a kill loses nothing but the answers.
//
// # The data directory
//
//	store/        the key store; sealed, but for its file names
//	root.key      the software root; whoever has it and the store has every key
//	credentials   the root access key, for the AWS tools
//	control.sock  while a daemon runs: where keymill backup and rewrap reach it
//
// The directory is 0700, the files 0600. A backup holds the store alone: the
// root key and the credentials are brought separately, on purpose.
//
// # Three listeners
//
// The API (Config.Listen) is package reactor's, and fasthttp's where that declines:
// everything is bounded before it is parsed. What is wrong with HTTP itself is
// answered here in the form AWS clients read; all else is package kms's.
//
// The admin listener (Config.AdminListen) answers health, readiness and metrics,
// to whoever reaches it: no names, no identifiers, no verbs.
//
// The control socket is a Unix socket in the data directory. It alone takes
// verbs that change something or write somewhere. Whoever can connect to it could
// read the store's files anyway, so the file system is the authorisation, and
// there is no token to keep or to leak.
//
// # TLS
//
// TLS 1.2 at least, 1.3 with the hybrid X25519MLKEM768 for clients that offer it;
// cipher suites and groups are Go's defaults, which follow the FIPS mode.
// [Server.Reload] puts changed files in force for new connections.
package daemon
