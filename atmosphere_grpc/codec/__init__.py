"""protobuf ⇄ domain. Protobuf types stop here: requests in, responses and statuses out."""
