package kms

// grantRows are the operations on grants.
var grantRows = []operation{}
