package kms

// multiRegionRows are the operations on related keys in several regions.
var multiRegionRows = []operation{}
