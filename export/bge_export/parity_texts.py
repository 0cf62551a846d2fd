"""The texts on which the parity gate compares graphs with PyTorch, written for this project.

There are short texts in many languages and scripts, because errors of a tokenizer or an embedding
table often affect one script only; and edge cases: an empty text, one token, truncated texts.
"""

from __future__ import annotations

_LONG = (
    "A reservoir above the old town fills in spring, when the snow goes from the ridges, and "
    "is drawn down through the dry months by farms, by the mill and by two thousand taps. "
    "Every measurement since 1931 is in one ledger, written by eleven hands. "
)

PARITY_TEXTS: tuple[str, ...] = (
    "",
    "a",
    "好",
    "🌍",
    "How do I reset the password of my router?",
    "A vector index trades a little recall for a lot of speed.",
    "The committee postponed its vote until the auditors had reported.",
    "Ice forms on lakes from the top because water is densest at four degrees.",
    "SELECT name, price FROM items WHERE price < 9.99 ORDER BY name;",
    "def area(radius: float) -> float:\n    return 3.14159 * radius ** 2",
    "¿Cuánto tarda en llegar el tren de Sevilla a Madrid?",
    "Le boulanger ouvre à six heures, même le dimanche.",
    "Die Brücke wird wegen Hochwasser bis auf Weiteres gesperrt.",
    "Il gatto dorme sul davanzale mentre fuori piove.",
    "O mercado fecha mais cedo na véspera do feriado.",
    "Поезд отправляется с третьего пути через пять минут.",
    "这家餐厅的招牌菜是清蒸鲈鱼。",
    "如何在没有网络的情况下安装软件？",
    "图书馆将于下周一重新开放，读者须携带证件。",
    "図書館は毎週月曜日が休みです。",
    "오늘은 비가 와서 산책을 가지 않았다.",
    "القطار يصل إلى المحطة في الساعة السابعة.",
    "यह किताब पिछले साल प्रकाशित हुई थी।",
    "รถไฟขบวนนี้ไปเชียงใหม่",
    "Bản đồ này cho thấy các con sông chính.",
    "Τα πλοία δεν αναχωρούν λόγω ισχυρών ανέμων.",
    "Great match tonight!!! 🎉🎉 2–1 in extra time 😅",
    "naïve café, coöperate, Zürich, smørrebrød, İstanbul",
    "   spaces   around\tand\nbetween   ",
    "ALL CAPITALS AND 1234567890 %$#@!",
    "https://example.org/a/b?c=d&e=f#g",
    "Query: [CLS] markers [SEP] inside a text </s> <pad>",
    " ".join([_LONG] * 2),
    " ".join([_LONG] * 14),
    "图书馆的旧账本从一九三一年开始，记录了每一次水位的变化。" * 30,
)
"""Texts of all lengths; the last two exceed 512 tokens."""

TOKENIZER_TEXTS: tuple[str, ...] = (
    "Mixed CASE İ ß ǅ ΌΣΟΣ",
    "e\u0301 e\u0301\u0323 \u1e69 Ångström",
    "ＦＵＬＬ　ｗｉｄｔｈ　１２３ ﬁ ℃ ½ ①",
    " leading",
    "trailing ",
    "two  spaces   and    more",
    "line\nline\r\n\n\n\ttab",
    "zero\u200bwidth soft\u00adhyphen \ufeffmark no\u00a0break",
    "control \x01 \x7f \ufffd",
    "don't we'll 3.14 a-b a_b x=y",
    "\u2581meta \u0120byte",
    "中文English混排 漢字かな交じり",
)
"""Texts that reveal a wrong normalizer, pre-tokenizer or post-processor."""
