// Package wire is the AWS JSON 1.1 form of the service.
package wire

//go:generate go run keymill/tools/wiregen -model model/kms-2014-11-01.json -overlay model/overlay.json -out .
