package kms

// keyStoreRows are the operations on custom key stores.
var keyStoreRows = []operation{}
