"""siptrunk.v1.SipTrunkService: a short method per RPC, which are described in the proto."""
