class MemberState:
    STABLE: str
