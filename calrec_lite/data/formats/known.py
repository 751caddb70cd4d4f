"""The readers, by name. docs/formats.md has a page's worth about each; a test keeps the two together.

Columns are the first of the named ones that a file has; texts are tidied only where their publisher's files need it.
"""

from calrec_lite.data.clean import tidy_amazon, tidy_movielens, tidy_recbole
from calrec_lite.data.formats.queries import GENRES, instacart_events, instacart_items, mind_events, movielens_100k
from calrec_lite.data.formats.shapes import File, Format, Layout, one

SHOP = {"Title": ["title"], "Category": ["category", "categories"], "Brand": ["brand"], "Price": ["price"]}  # [S]
FILMS = {"Title": ["title", "movie_title"], "Year": ["release_year"], "Genres": ["genres", "class"]}
AMAZON = ["reviewerID"], ["asin"], ["unixReviewTime"]  # user, item, time

ML_100K = (
    one("u.data", kind="csv", delimiter="\t", quotes=False, columns=("user_id", "item_id", "rating", "timestamp")),
    Layout(
        (
            File(
                "u.item",
                ("item_id", "movie_title", "release_date", "video_release_date", "imdb_url", *GENRES),
                kind="csv",
                delimiter="|",
                quotes=False,
                encoding="latin-1",
            ),
        ),
        movielens_100k,
    ),
)
ML_DAT = (  # 1M, 10M
    one("ratings.dat", kind="csv", delimiter="::", quotes=False, columns=("userId", "movieId", "rating", "timestamp")),
    one(
        "movies.dat",
        kind="csv",
        delimiter="::",
        quotes=False,
        columns=("movieId", "title", "genres"),
        encoding="latin-1",
    ),
)
BEHAVIORS = ("impression", "user", "time", "history", "impressions")
NEWS = ("item", "category", "subcategory", "title", "abstract", "url", "title_entities", "abstract_entities")
ORDERS = (
    File("order_products__prior.csv", needs=("order_id", "product_id")),
    File("orders.csv", needs=("order_id", "user_id", "order_number")),
    File("order_products__train.csv", needs=("order_id", "product_id"), required=False),
)
PRODUCTS = (
    File("products.csv", needs=("product_id", "product_name", "aisle_id", "department_id")),
    File("aisles.csv", needs=("aisle_id", "aisle")),
    File("departments.csv", needs=("department_id", "department")),
)

READERS = {
    "table": Format(["user"], ["item"], ["time"], SHOP),
    "movielens": Format(
        ["userId", "user_id"],
        ["movieId", "item_id"],
        ["timestamp"],
        FILMS,
        tidy_movielens,
        events=(ML_100K[0], ML_DAT[0], one("ratings.csv")),
        items=(ML_100K[1], ML_DAT[1], one("movies.csv")),
        signs=frozenset({"userId", "movieId", "timestamp"}),
    ),
    "amazon2014": Format(
        *AMAZON,
        SHOP,
        tidy_amazon,
        html=True,
        own_text=False,
        events=(one("reviews_*.json"),),
        items=(one("meta_*.json"),),
        signs=frozenset({"reviewerID", "asin", "unixReviewTime", "helpful"}),
    ),
    "amazon2018": Format(
        *AMAZON,
        SHOP,
        tidy_amazon,
        html=True,
        events=(one("*_5.json"), one("*.json")),
        items=(one("meta_*.json"),),
        signs=frozenset({"reviewerID", "asin", "unixReviewTime"}),
    ),
    "amazon2023": Format(
        ["user_id"],
        ["parent_asin"],
        ["timestamp"],
        {"Title": ["title"], "Category": ["categories"], "Brand": ["store"], "Price": ["price"]},
        tidy_amazon,
        html=True,
        time_format="milliseconds",
        own_text=False,  # the title of a review is no item's
        events=(one("*.jsonl"), one("*.csv")),
        items=(one("meta_*.jsonl"),),
        signs=frozenset({"user_id", "parent_asin", "timestamp"}),
    ),
    "yelp": Format(
        ["user_id"],
        ["business_id"],
        ["date"],
        {"Title": ["name"], "Category": ["categories"], "City": ["city"]},
        time_format="iso",
        timed=True,
        own_text=False,
        events=(one("*review.json"),),
        items=(one("*business.json"),),
        signs=frozenset({"review_id", "user_id", "business_id", "date"}),
    ),
    "steam": Format(
        ["username"],
        ["product_id"],
        ["date"],
        {"Title": ["app_name", "title"], "Genres": ["genres"], "Developer": ["developer"], "Price": ["price"]},
        item_id=["id"],
        time_format="iso",
        timed=True,
        own_text=False,
        events=(one("steam_reviews.json"), one("steam_new.json")),
        items=(one("steam_games.json"),),
        signs=frozenset({"username", "product_id", "date"}),
    ),
    "goodreads": Format(
        ["user_id"],
        ["book_id"],
        ["date_added"],
        {"Title": ["title"], "Publisher": ["publisher"], "Year": ["publication_year"]},
        time_format="%a %b %d %H:%M:%S %z %Y",
        timed=True,  # goodreads_interactions.csv has no times, and other ids than the books
        own_text=False,
        events=(one("goodreads_interactions*.json"), one("goodreads_reviews*.json")),
        items=(one("goodreads_books*.json"),),
        signs=frozenset({"user_id", "book_id", "date_added"}),
    ),
    "hm": Format(
        ["customer_id"],
        ["article_id"],
        ["t_dat"],
        {
            "Title": ["prod_name"],
            "Type": ["product_type_name"],
            "Colour": ["colour_group_name"],
            "Section": ["index_group_name"],
        },
        time_format="iso",
        timed=True,
        own_text=False,
        events=(one("transactions_train.csv"),),
        items=(one("articles.csv"),),
        signs=frozenset({"t_dat", "customer_id", "article_id"}),
    ),
    "instacart": Format(
        ["user_id"],
        ["product_id"],
        ["order_number"],
        {"Title": ["product_name"], "Aisle": ["aisle"], "Department": ["department"]},
        time_format="sequence",
        timed=True,
        own_text=False,
        events=(Layout(ORDERS, instacart_events),),
        items=(Layout(PRODUCTS, instacart_items),),
    ),
    "recbole": Format(
        ["user_id"],
        ["item_id", "business_id", "product_id"],
        ["timestamp", "date"],
        {
            "Title": ["title", "movie_title", "item_name", "name"],
            "Year": ["release_year"],
            "Category": ["categories", "class", "genre"],
            "Brand": ["brand"],
            "Price": ["price"],
        },
        tidy_recbole,
        events=(one("*.inter"),),
        items=(one("*.item"),),
    ),
    "mind": Format(
        ["user"],
        ["item"],
        ["time"],
        {"Title": ["title"], "Category": ["category"], "Subcategory": ["subcategory"]},
        time_format="seconds",
        timed=True,
        own_text=False,
        events=(Layout((File("behaviors.tsv", BEHAVIORS, kind="csv", delimiter="\t", quotes=False),), mind_events),),
        items=(one("news.tsv", columns=NEWS, kind="csv", delimiter="\t", quotes=False),),
    ),
}
