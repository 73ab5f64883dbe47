"""Names come apart as they were joined."""

from inference_pio.anatomy.attention_name import OVER, dense_part, pattern_part


def test_names_come_apart_as_they_were_joined() -> None:
    assert (pattern_part(f"a{OVER}b"), dense_part(f"a{OVER}b")) == ("a", "b")
    assert (pattern_part("b"), dense_part("b")) == (None, "b")
