"""What the OpenAPI document shows: values, bodies and errors; tests send and provoke them."""

from typing import Any

from trunkline.errors import Violation
from trunkline.gateway.problems import ProblemError, invalid

_TRUNK_ID = "01KB0QZ7M3R8V5T2Y6W9X4C1DA"
_OTHER_ID = "01KB0QZ7M3H2C6E9G3K7M1P5RD"
_NUMBER_ID = "01KB0QZ7M3G9B4D7F2J5L8N1QC"
_GATEWAY = {"gateway_address": "your-trunk.pstn.twilio.com", "port": 5060, "priority": 1}
_USERPASS: dict[str, Any] = {
    "name": "Twilio Production",
    "provider": "twilio",
    "description": "Main Twilio Elastic SIP trunk",
    "auth_type": "userpass",
    "auth_username": "your-sip-username",
    "auth_password": "your-sip-password",
    "gateways": [_GATEWAY],
    "transport": "transport-udp",
    "allow": "ulaw,alaw",
    "disallow": "all",
    "inbound_enabled": True,
    "outbound_leading_plus_enabled": True,
}
BODIES: dict[str, dict[str, Any]] = {
    "CreateSipTrunk": {
        "userpass": _USERPASS,
        "ip-based": {
            "name": "Plivo Elastic Trunk",
            "provider": "plivo",
            "auth_type": "ip-based",
            "gateways": [{"gateway_address": "21467306465797919.zt.plivo.com"}],
            "ip_identifiers": [{"ip_address": "15.207.90.192/31"}],
            "inbound_enabled": True,
        },
    },
    "UpdateSipTrunk": {
        "one field": {"outbound_leading_plus_enabled": False},
        "credentials": {"auth_username": "new-username", "auth_password": "new-password"},
        "encrypted": {"transport": "transport-tls", "media_encryption": "sdes"},
        "switch off": {"is_active": False},
    },
    "CreatePhoneNumber": {
        "number": {"phone_number": "919876543210", "name": "Mumbai Support Line"},
    },
    "UpdatePhoneNumber": {"rename": {"name": "Mumbai Sales Line"}},
    "BatchUpdateSipTrunks": {
        "switch off two": {
            "requests": [
                {"id": _TRUNK_ID, "is_active": False},
                {"id": _OTHER_ID, "is_active": False, "etag": None},
            ]
        },
    },
    "AddGateways": {
        "fail-over": {"gateways": [{"gateway_address": "backup.example.com", "priority": 2}]},
    },
    "AddIpIdentifiers": {"range": {"ip_identifiers": [{"ip_address": "203.0.113.0/24"}]}},
    "BatchCreatePhoneNumbers": {
        "two": {"phone_numbers": [{"phone_number": "+15550101"}, {"phone_number": "+15550102"}]},
    },
    "BatchDeletePhoneNumbers": {"one": {"ids": [_NUMBER_ID]}},
    "MovePhoneNumbers": {"one": {"target_trunk_id": _OTHER_ID, "ids": [_NUMBER_ID]}},
    "RevertSipTrunk": {"the create": {"revision": 1}},
}
# By the full name of the field; the rest have a default or few values.
VALUES: dict[str, Any] = {
    "siptrunk.v1.SipTrunk.id": _TRUNK_ID,
    "siptrunk.v1.SipTrunk.account_id": "default",
    "siptrunk.v1.SipTrunk.name": "Twilio Production",
    "siptrunk.v1.SipTrunk.provider": "twilio",
    "siptrunk.v1.SipTrunk.description": "Main Twilio Elastic SIP trunk",
    "siptrunk.v1.SipTrunk.auth_username": "your-sip-username",
    "siptrunk.v1.SipTrunk.auth_password": "your-sip-password",
    "siptrunk.v1.SipTrunk.phone_number_count": 1,
    "siptrunk.v1.SipTrunk.allow": "ulaw,alaw",
    "siptrunk.v1.SipTrunk.disallow": "all",
    "siptrunk.v1.SipTrunk.codecs": ["ulaw", "alaw"],
    "siptrunk.v1.SipTrunk.qualify_frequency": 60,
    "siptrunk.v1.SipTrunk.etag": '"1-660e66e593304"',
    "siptrunk.v1.Gateway.id": "01KB0QZ7M3E6K1N8P4S7V2H5JB",
    "siptrunk.v1.Gateway.gateway_address": "sip.example.com",
    "siptrunk.v1.Gateway.port": 5060,
    "siptrunk.v1.Gateway.priority": 1,
    "siptrunk.v1.IpIdentifier.ip_address": "203.0.113.5",
    "siptrunk.v1.PhoneNumber.id": _NUMBER_ID,
    "siptrunk.v1.PhoneNumber.phone_number": "+15550100",
    "siptrunk.v1.PhoneNumber.name": "Support line",
    "siptrunk.v1.PhoneNumber.byot_trunk_id": _TRUNK_ID,
    "siptrunk.v1.PhoneNumber.telephony_provider": "sip-trunk",
}
_SDES = "can't be sdes without transport transport-tls: its keys would be readable on the wire"
_ERRORS = (
    invalid([Violation("qualify_frequency", "OUT_OF_RANGE", "is 90000; it must be 0 to 86400")]),
    ProblemError(401, "TOKEN_UNKNOWN", "Access denied: the token is not known or was revoked"),
    ProblemError(403, "SCOPE_MISSING", "the token lacks the scope trunks:write"),
    ProblemError(404, "TRUNK_NOT_FOUND", "the account has no trunk of this id"),
    ProblemError(409, "NAME_TAKEN", "the account has another trunk of this name"),
    ProblemError(
        410,
        "RESUME_TOKEN_EXPIRED",
        "the token is older than the history that is kept: start with the initial state",
    ),
    ProblemError(412, "ETAG_MISMATCH", "the trunk has changed since this etag: read it again"),
    ProblemError(413, "BODY_TOO_LARGE", "the body is larger than 1048576 bytes"),
    ProblemError(415, "NOT_JSON", "the body must be application/json"),
    invalid([Violation("media_encryption", "SDES_NEEDS_TLS", _SDES)]),
    ProblemError(429, "TOO_MANY_WATCHERS", "there are as many watches as there may be"),
    ProblemError(431, "TOO_MANY_HEADERS", "too many header fields"),
    ProblemError(
        503,
        "DATABASE_UNAVAILABLE",
        "the database can't be reached now; whether a change was written is not known",
    ),
    ProblemError(504, "DEADLINE_EXCEEDED", "the request's time is up"),
)
ERRORS: dict[str, dict[str, Any]] = {str(error.status): error.body for error in _ERRORS}
# A part of a stream, its data cut short.
EVENTS = """retry: 2000
: heartbeat
id: zH0mPq3xV9sAAAAAAAAAKg

id: zH0mPq3xV9sAAAAAAAAAKw
event: updated
data: {"kind":"updated","revision":2,"changed_fields":["is_active"]}

"""
