package policy

import "strings"

// SetOperator is the prefix by which an operator looks at all values of a
// multi-valued condition key.
type SetOperator uint8

const (
	SingleValue SetOperator = iota
	ForAnyValue
	ForAllValues
)

// Condition is one comparison: operator, key, and the values of which one must
// match (none, for the negated operators).
type Condition struct {
	Operator string // without prefix and suffix: StringEquals, Null ...
	Set      SetOperator
	IfExists bool
	Key      string // as written; compared without case
	Values   []string
}

// operators are the comparisons of the policy language.
var operators = func() map[string]bool {
	m := make(map[string]bool)
	for _, op := range strings.Fields(`
		StringEquals StringNotEquals StringEqualsIgnoreCase StringNotEqualsIgnoreCase StringLike StringNotLike
		NumericEquals NumericNotEquals
		NumericLessThan NumericLessThanEquals NumericGreaterThan NumericGreaterThanEquals
		DateEquals DateNotEquals DateLessThan DateLessThanEquals DateGreaterThan DateGreaterThanEquals
		Bool BinaryEquals IpAddress NotIpAddress
		ArnEquals ArnNotEquals ArnLike ArnNotLike
		Null`) {
		m[op] = true
	}
	return m
}()

// readConditions flattens operator -> key -> values into one list; every entry
// of it must hold.
func readConditions(n *node, where string) ([]Condition, *Error) {
	if n.kind != object {
		return nil, syntax(where, "a JSON object is expected")
	}
	var all []Condition
	for i := range n.members {
		name, keys := n.members[i].name, &n.members[i].value
		op, ok := parseOperator(name)
		if !ok {
			return nil, &Error{Text: "Invalid Condition type : " + excerpt(name), Where: where}
		}
		at := where + "." + name
		if keys.kind != object {
			return nil, syntax(at, "a JSON object is expected")
		}
		for j := range keys.members {
			c := op
			c.Key = keys.members[j].name
			if err := checkConditionKey(c.Key, at); err != nil {
				return nil, err
			}
			var err *Error
			if c.Values, err = readConditionValues(&keys.members[j].value, at); err != nil {
				return nil, err
			}
			all = append(all, c)
		}
	}
	return all, nil
}

// parseOperator reads [ForAnyValue:|ForAllValues:]Operator[IfExists]. Null asks
// for existence itself and takes no IfExists.
func parseOperator(name string) (Condition, bool) {
	var c Condition
	op := name
	if rest, ok := strings.CutPrefix(op, "ForAnyValue:"); ok {
		c.Set, op = ForAnyValue, rest
	} else if rest, ok := strings.CutPrefix(op, "ForAllValues:"); ok {
		c.Set, op = ForAllValues, rest
	}
	c.Operator, c.IfExists = strings.CutSuffix(op, "IfExists")
	return c, operators[c.Operator] && !(c.IfExists && c.Operator == "Null")
}

// checkConditionKey wants vendor:name. The name may hold anything, since an
// encryption context key is part of it.
func checkConditionKey(key, where string) *Error {
	vendor, name, _ := strings.Cut(key, ":")
	if vendor == "" || name == "" || !visible(vendor) {
		return &Error{Where: where, Text: "Actions/Conditions must be prefaced by a vendor, e.g., iam, sdb, ec2, etc." +
			" Invalid condition key: " + excerpt(key)}
	}
	return nil
}

func readConditionValues(n *node, where string) ([]string, *Error) {
	list := oneOrMany(n)
	values := make([]string, 0, len(list))
	for i := range list {
		switch list[i].kind {
		case text, number, boolean:
			values = append(values, list[i].text)
		default:
			return nil, syntax(where, "a condition value is a string, a number, a boolean, or a list of those")
		}
	}
	return values, nil
}
