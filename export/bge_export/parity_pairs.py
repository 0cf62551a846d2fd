"""The pairs on which the parity gate compares rerankers with PyTorch, written for this project.

Each query has a passage that answers it and one that does not, in several languages and scripts,
since an error of a tokenizer often affects one script only. Edge cases follow: empty and equal
texts, texts that are longer than what is read, and special tokens in a text.
"""

from __future__ import annotations

_QUESTIONS: tuple[tuple[str, str, str], ...] = (
    (
        "How do I reset the password of my router?",
        "Hold the button at the back for ten seconds. Then the password on the label is valid.",
        "Routers were first sold to households in the late nineties.",
    ),
    (
        "why does ice float on water",
        "Ice forms on lakes from the top, because water is densest at four degrees.",
        "The ferry to the island does not run while there is ice in the harbour.",
    ),
    (
        "when was the ledger of the reservoir begun",
        "Every measurement since 1931 is in one ledger, written by eleven hands.",
        "The mill closed in 1964, and its wheel was sold to a museum.",
    ),
    (
        "Who postponed the vote?",
        "The committee postponed its vote until the auditors had reported.",
        "The vote on the new bridge was close: 41 to 39.",
    ),
    (
        "¿Cuánto tarda el tren de Sevilla a Madrid?",
        "El viaje en tren de alta velocidad entre Sevilla y Madrid dura dos horas y media.",
        "La estación de Sevilla fue inaugurada en 1991.",
    ),
    (
        "À quelle heure ouvre la boulangerie le dimanche ?",
        "Le boulanger ouvre à six heures, même le dimanche.",
        "Le pain de seigle se garde une semaine dans un linge.",
    ),
    (
        "Warum ist die Brücke gesperrt?",
        "Wegen des Hochwassers bleibt die Brücke bis auf Weiteres gesperrt.",
        "Die Brücke wurde 1887 gebaut und ist 312 Meter lang.",
    ),
    (
        "Dove dorme il gatto quando piove?",
        "Mentre fuori piove, il gatto dorme sul davanzale, vicino alla stufa.",
        "Il mercato del pesce apre alle cinque.",
    ),
    (
        "Quando é que o mercado fecha mais cedo?",
        "Na véspera do feriado o mercado fecha ao meio-dia.",
        "As laranjas do Algarve chegam ao mercado em dezembro.",
    ),
    (
        "С какого пути отправляется поезд?",
        "Поезд на Казань отправляется с третьего пути через пять минут.",
        "В этом городе живёт почти миллион человек.",
    ),
    (
        "如何在没有网络的情况下安装软件？",
        "先在另一台机器上下载安装包，再用闪存盘复制过来，然后离线安装。",
        "这家餐厅的招牌菜是清蒸鲈鱼。",
    ),
    (
        "图书馆什么时候重新开放？",
        "图书馆将于下周一重新开放，读者须携带证件。",
        "软件更新以后，请重新启动计算机。",
    ),
    (
        "図書館の休館日はいつですか",
        "図書館は毎週月曜日が休みです。",
        "この川は山から海まで八十キロ流れる。",
    ),
    (
        "오늘 왜 산책을 가지 않았나요?",
        "오늘은 비가 와서 산책을 가지 않았다.",
        "그 책은 작년에 출판되었다.",
    ),
    (
        "متى يصل القطار؟",
        "القطار يصل إلى المحطة في الساعة السابعة صباحا.",
        "تشتهر المدينة بأسواقها القديمة.",
    ),
    (
        "यह किताब कब प्रकाशित हुई?",
        "यह किताब पिछले साल दिल्ली में प्रकाशित हुई थी।",
        "आज मौसम साफ रहेगा।",
    ),
    (
        "Γιατί δεν αναχωρούν τα πλοία;",
        "Τα πλοία δεν αναχωρούν λόγω ισχυρών ανέμων στο Αιγαίο.",
        "Το μουσείο είναι κλειστό τη Δευτέρα.",
    ),
    (
        "Bản đồ này cho thấy điều gì?",
        "Bản đồ này cho thấy các con sông chính và những thành phố bên bờ.",
        "Món phở ngon nhất là ở đầu phố.",
    ),
    (
        "รถไฟขบวนนี้ไปไหน",
        "รถไฟขบวนนี้ไปเชียงใหม่ ออกเวลาสองทุ่ม",
        "ร้านอาหารปิดวันจันทร์",
    ),
)

_LONG = (
    "A reservoir above the old town fills in spring, when the snow goes from the ridges, and is "
    "drawn down through the dry months by farms, by the mill and by two thousand taps. "
)
_ANSWER = "Its gate is opened by hand on the first of May. "
_ASKED = "when is the gate of the reservoir opened"

PARITY_PAIRS: tuple[tuple[str, str], ...] = (
    *((query, passage) for query, *passages in _QUESTIONS for passage in passages),
    ("", "A passage without a query."),
    ("a query without a passage", ""),
    ("", ""),
    ("the same text twice", "the same text twice"),
    ("a", "b"),
    ("SELECT price FROM items", "The table items has the columns name and price."),
    ("[SEP] </s> in a query", "[CLS] <s> and <pad> [PAD] in a passage"),
    ("水", "💧"),
    # The answer is read, and then it is not.
    (_ASKED, _ANSWER + _LONG * 16),
    (_ASKED, _LONG * 16 + _ANSWER),
    # Queries that are cut, with a passage that is cut too, and one that is not.
    (_LONG * 16 + _ASKED, _ANSWER + _LONG * 8),
    (_LONG * 16 + _ASKED, _ANSWER),
    ("水库的闸门什么时候打开？" * 40, "闸门在五月一日由人工打开。" * 40),
)
"""Query and passage of each pair. The last ones exceed 512 tokens."""
