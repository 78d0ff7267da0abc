// Package client calls the operations that Keymill adds to AWS KMS: data keys
// and batches by the thousand in one request. It is used like a client of the
// AWS SDK for Go, whose configuration and signature it takes:
//
//	cfg, err := config.LoadDefaultConfig(ctx)
//	...
//	c := client.NewFromConfig(cfg, func(o *client.Options) { o.Endpoint = "http://127.0.0.1:4599" })
//	out, err := c.GenerateDataKeys(ctx, &client.GenerateDataKeysInput{
//		KeyId: aws.String("alias/volumes"), KeySpec: types.DataKeySpecAes256, NumberOfKeys: 1000,
//	})
//	...
//	defer out.Wipe()
//	for _, k := range out.DataKeys { use(k.Plaintext, k.CiphertextBlob) }
//
// The names of specs and algorithms are those of the SDK's service/kms/types.
// Everything else, such as Decrypt of one such CiphertextBlob, is an operation of
// AWS KMS: use the SDK's own client with the same endpoint.
//
// # Items and errors
//
// An error means that nothing was done; it is an [*APIError] when the server
// refused the request, with its code as the SDK's errors have it (it implements
// smithy.APIError). Without an error, the results stand in the order of the
// items, and each has either its value or, in Err, what was wrong with that item.
//
// Throttling and errors of the server and the connection are tried again as
// Options.Retryer says, in full: every operation can be repeated without harm.
// A single item's error never makes the client try again.
//
// # Limits
//
// At most [MaxItems] items and [MaxBody] bytes of JSON in a request; the server
// refuses more as a whole. The answer comes in the binary form of
// daemon/wire/bulk, without Base64, unless Options.JSON asks for the other; it is
// read whole before anything of it is returned, and the results are slices of it.
package client
