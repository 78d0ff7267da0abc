// Package model holds the service model and its overlay as data, for tests
// that compare the generated code with it. The daemon does not import it.
package model

import _ "embed"

// JSON is the service model: names, shapes and constraints.
//
//go:embed kms-2014-11-01.json
var JSON []byte

// Extension is the model of the operations that AWS KMS lacks, in the same
// form; it uses shapes of the service model. Its metadata has the bound of its
// request bodies.
//
//go:embed keymill-2026-11-01.json
var Extension []byte

// Overlay is what the model does not say; see tools/wiregen.
//
//go:embed overlay.json
var Overlay []byte
