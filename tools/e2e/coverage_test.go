package e2e

import (
	"flag"
	"fmt"
	"os"
)

// coverage collects what the tests' SDK clients exercise.
var coverage *Coverage

// uncovered are the parts of the service model that no test shows, each with its
// reason. A "*" at the end stands for all that begins so, "* " before a member or
// an error for that of every operation.
var uncovered = map[string]string{
	"* !KMSInternalException":       "a defect of the daemon: tests inject faults below the operations instead",
	"* !DependencyTimeoutException": "the root of trust hangs: tested with a faulty root in daemon/kms",
	"* !KeyUnavailableException":    "the root of trust is away: tested with a faulty root in daemon/kms",

	"ImportKeyMaterial !ExpiredImportTokenException": "takes a day: tested with a clock of its own in daemon/kms",

	"ListGrants !KMSInvalidStateException":   "allowed in every key state, as AWS documents",
	"RetireGrant !KMSInvalidStateException":  "allowed in every key state, as AWS documents",
	"RevokeGrant !KMSInvalidStateException":  "allowed in every key state, as AWS documents",
	"ListRetirableGrants !NotFoundException": "nothing that it names can be missing",

	"GetKeyRotationStatus !KMSInvalidStateException":  "allowed in every key state, as AWS documents",
	"ListKeyRotations !KMSInvalidStateException":      "allowed in every key state, as AWS documents",
	"RotateKeyOnDemand !ConflictException":            "a rotation is due 90 days ahead at least: tested with a clock of its own in daemon/kms",
	"GetKeyRotationStatus >OnDemandRotationStartDate": "shown for milliseconds: tested with a root of trust that waits in daemon/kms",

	"* <Recipient":                        "refused: attestation documents are not verified",
	"* <Recipient.AttestationDocument":    "refused: attestation documents are not verified",
	"* <Recipient.KeyEncryptionAlgorithm": "refused: attestation documents are not verified",
	"* >CiphertextForRecipient":           "refused: attestation documents are not verified",

	"* !CloudHsmClusterInvalidConfigurationException":                          "a token has no subnets or security groups",
	"* !CloudHsmClusterNotActiveException":                                     "a token that is away shows when the store connects",
	"UpdateCustomKeyStore !CloudHsmClusterNotRelatedException":                 "needs certificates: tested in daemon/kms",
	"CreateCustomKeyStore !IncorrectTrustAnchorException":                      "needs certificates: tested in daemon/kms",
	"* !XksProxyVpcEndpointServiceInvalidConfigurationException":               "there is no VPC to look into",
	"* !XksProxyVpcEndpointServiceNotFoundException":                           "there is no VPC to look into",
	"* !XksProxyInvalidConfigurationException":                                 "a proxy with faults: tested in daemon/kms",
	"* !XksProxyInvalidResponseException":                                      "a proxy with faults: tested in daemon/kms",
	"* !XksProxyUriInUseException":                                             "tested with a proxy in daemon/kms",
	"CreateKey !XksKeyInvalidConfigurationException":                           "a proxy with faults: tested in daemon/xks",
	"UpdateCustomKeyStore !XksProxyIncorrectAuthenticationCredentialException": "tested with a proxy in daemon/kms",
	"CreateCustomKeyStore !LimitExceededException":                             "tested with a small quota in daemon/kms",
	"DeleteCustomKeyStore !CustomKeyStoreHasCMKsException":                     "tested with a proxy in daemon/kms",

	"CreateKey !LimitExceededException":    "tested with a small quota in daemon/kms",
	"ReplicateKey !LimitExceededException": "tested with a small quota in daemon/kms",
	"EnableKey !LimitExceededException":    "AWS documents no limit that enabling meets",
	"UntagResource !TagException":          "tags that are not there are ignored, reserved ones never are",
	"TagResource !LimitExceededException":  "too many tags are a TagException, as AWS answers",
	"CreateKey !InvalidArnException":       "nothing in the request is an ARN of its own",
	"GetPublicKey !DisabledException":      "allowed while disabled, as AWS documents since 2024",

	"GenerateDataKeyPairWithoutPlaintext !UnsupportedOperationException": "needs a key in a custom key store: tested in daemon/kms",
	"GetPublicKey !InvalidKeyUsageException":                             "keys without a public half are UnsupportedOperationException, as AWS answers",
	"DeleteAlias !KMSInvalidStateException":                              "allowed in every key state, as AWS documents",
	"GetKeyPolicy !KMSInvalidStateException":                             "allowed in every key state, as AWS documents",
	"ListKeyPolicies !KMSInvalidStateException":                          "allowed in every key state, as AWS documents",
	"PutKeyPolicy !KMSInvalidStateException":                             "allowed in every key state, as AWS documents",
	"DeleteImportedKeyMaterial !KMSInvalidStateException":                "states that pass before a client can see them: tested in daemon/kms",
	"ListKeyPolicies >NextMarker":                                        "one name never fills a page",
	"ListKeyPolicies <Marker":                                            "no marker is ever handed out",

	"CreateKey >KeyMetadata.DeletionDate":                           "of no new key",
	"CreateKey >KeyMetadata.ExpirationModel":                        "of no new key",
	"CreateKey >KeyMetadata.ValidTo":                                "of no new key",
	"CreateKey >KeyMetadata.PendingDeletionWindowInDays":            "of no new key",
	"CreateKey >KeyMetadata.MultiRegionConfiguration.ReplicaKeys.*": "of no new key",
	"ReplicateKey >ReplicaKeyMetadata.CloudHsmClusterId":            "keys in key stores have no replicas",
	"ReplicateKey >ReplicaKeyMetadata.CustomKeyStoreId":             "keys in key stores have no replicas",
	"ReplicateKey >ReplicaKeyMetadata.XksKeyConfiguration*":         "keys in key stores have no replicas",
	"ReplicateKey >ReplicaKeyMetadata.DeletionDate":                 "of no new replica",
	"ReplicateKey >ReplicaKeyMetadata.ExpirationModel":              "of no new replica",
	"ReplicateKey >ReplicaKeyMetadata.ValidTo":                      "of no new replica",
	"ReplicateKey >ReplicaKeyMetadata.PendingDeletionWindowInDays":  "of no new replica",
	"ReplicateKey >ReplicaKeyMetadata.CurrentKeyMaterialId":         "not while it is Creating, as AWS answers",
}

// wholeRun tells whether all tests of the package have run.
func wholeRun() bool {
	run, skip := flag.Lookup("test.run"), flag.Lookup("test.skip")
	return run.Value.String() == "" && skip.Value.String() == "" && os.Getenv("KEYMILL_TEST_COVERAGE") != "off"
}

// reportCoverage prints what nothing has exercised, and returns the exit code.
func reportCoverage() int {
	missing := coverage.Missing(uncovered)
	if len(missing) == 0 {
		return 0
	}
	fmt.Fprintf(os.Stderr, "FAIL: %d parts of the service model are exercised by no test of this package:\n", len(missing))
	for _, m := range missing {
		fmt.Fprintln(os.Stderr, "  "+m)
	}
	return 1
}
