package kms

import (
	"strings"

	"keymill/daemon/wire"
)

// An OperationNote says how an operation of AWS KMS stands here, for the table in
// COMPATIBILITY.md, which tools/compat writes.
type OperationNote struct {
	Name string
	// Since is the first version that has the operation, "" for none.
	Since string
	// Differences from AWS KMS, each a sentence or two.
	Differences []string
}

// firstVersion is the version that brings every operation there is.
const firstVersion = "0.1"

// Compatibility lists every operation of the AWS KMS service model, in the order
// of their names.
func Compatibility() []OperationNote {
	var notes []OperationNote
	for op := wire.Op(1); op <= wire.NumOps; op++ {
		if strings.HasPrefix(op.Target(), wire.ExtensionPrefix) {
			continue
		}
		n := OperationNote{Name: op.String(), Differences: differences[op]}
		if operations[op].run != nil {
			n.Since = firstVersion
		}
		notes = append(notes, n)
	}
	return notes
}

// CommonDifferences hold for more than one operation.
var CommonDifferences = []string{
	"Key policies and grants are checked and kept, and do not decide yet: every access key of an account may do everything in it. The daemon says so at start.",
	"Changes are in force when they are acknowledged. Where AWS KMS passes through a state for some seconds or minutes (Creating, Updating, DISCONNECTING), the work is done here before the answer.",
	"A request with Recipient is refused with UnsupportedOperationException: attestation documents are not verified, and plaintext is never returned for one.",
	"Requests are signed in the Authorization header with X-Amz-Date: presigned requests, a Date header instead, SigV4a and session tokens are refused.",
	"A Limit above the maximum of an operation is taken as the maximum.",
	"Ciphertexts have a format of Keymill's own. AWS KMS cannot decrypt them, nor Keymill those of AWS KMS.",
	"Regions are names within one daemon, which serves those it is told to; another one is refused by name.",
	"There is one partition rule: a Region's name decides. SM2 keys are available in every Region, and SYMMETRIC_DEFAULT is AES-256 in every Region.",
	"Principals in policies and grants are checked for their form and partition, not for their existence.",
}

var differences = map[wire.Op][]string{
	wire.OpCancelKeyDeletion:        {"A key that lacks imported material is PendingImport afterwards, not Disabled."},
	wire.OpConnectCustomKeyStore:    {"A token is connected in milliseconds. Its password is not changed by the connection."},
	wire.OpCreateCustomKeyStore:     {"A CloudHsmClusterId names a PKCS#11 token that the operator has configured (option key-stores); TrustAnchorCertificate is compared with the one configured there, if any.", "The name of a proxy is looked up by DNS or in that configuration for VPC_ENDPOINT_SERVICE too: there is no VPC."},
	wire.OpCreateGrant:              {"Bare account numbers are not taken as principals.", "GranteeServicePrincipal, RetiringServicePrincipal and Constraints.SourceArn are refused with UnsupportedOperationException.", "A grant token stays valid while its grant exists."},
	wire.OpCreateKey:                {"An operator may allow asymmetric and HMAC keys in a custom key store of type AWS_CLOUDHSM, where the token can make them."},
	wire.OpDecrypt:                  {"A wrong ciphertext or encryption context of a key in a custom key store of type AWS_CLOUDHSM is InvalidCiphertextException, as with other keys; what else fails there is KMSInvalidStateException."},
	wire.OpDescribeKey:              {"alias/aws/SERVICE makes the AWS managed key of 26 services. No service calls Keymill, so such a key encrypts nothing: its policy refuses direct use, as that of AWS does."},
	wire.OpDisconnectCustomKeyStore: {"Takes effect at once: DISCONNECTING is never seen."},
	wire.OpGenerateRandom:           {"Without CustomKeyStoreId the operating system's generator is the source."},
	wire.OpGetParametersForImport:   {"SM2 wrapping keys are available in every Region. At most 8 wrapping keys of a KMS key are valid at once; another one makes the oldest invalid."},
	wire.OpImportKeyMaterial:        {"Private keys may be in BER, and in any encoding of the same key when they are imported again."},
	wire.OpListGrants:               {"GranteeServicePrincipal is refused with UnsupportedOperationException: no grant names a service."},
	wire.OpListKeyRotations:         {"The oldest comes first."},
	wire.OpRotateKeyOnDemand:        {"The rotation is done when it is answered; requests at the same time share one rotation."},
	wire.OpUpdateCustomKeyStore:     {"Changes are in force at once."},
	wire.OpGetKeyLastUsage:          {"The last use shows at once. CloudTrailEventId follows from the request's id; there is no audit trail yet."},
	wire.OpRetireGrant:              {"A GrantToken together with KeyId or GrantId is refused."},
	wire.OpScheduleKeyDeletion:      {"The key is destroyed within a minute of its date, and its bytes are gone from the disk some ten minutes later. After a jump of the clock destruction waits until the operator confirms the time."},
	wire.OpUpdatePrimaryRegion:      {"The Updating state is never seen."},
	wire.OpReEncrypt:                {"A wrong ciphertext or encryption context of a key in a custom key store of type AWS_CLOUDHSM is InvalidCiphertextException, as with other keys; what else fails there is KMSInvalidStateException."},
	wire.OpReplicateKey:             {"The answer shows the state Creating as AWS KMS does; the replica can be used when it is sent."},
}
