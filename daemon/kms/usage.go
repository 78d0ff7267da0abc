package kms

// usageRows are the operations on what is known of a key's use.
var usageRows = []operation{}
