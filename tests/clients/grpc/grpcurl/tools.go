// Pins the version of grpcurl, which is built from here.
package tools
