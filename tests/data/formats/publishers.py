"""Tiny files in the shapes of public data sets, written by hand: no line of them is anyone's data."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from handmade import json_lines, write


def python_lines(records: list[dict[str, Any]], unicode_marks: bool = False) -> str:
    """Records as Python 3 prints dicts, or as Python 2 did, with a `u` before each text."""

    def spelled(value: Any) -> str:
        if isinstance(value, dict):
            return "{" + ", ".join(f"{spelled(k)}: {spelled(v)}" for k, v in value.items()) + "}"
        if isinstance(value, list):
            return "[" + ", ".join(map(spelled, value)) + "]"
        return ("u" if unicode_marks and isinstance(value, str) else "") + (
            ascii(value) if unicode_marks else repr(value)
        )

    return "".join(spelled(record) + "\n" for record in records)


def movielens_100k(folder: Path) -> Path:
    write(folder / "u.data", "1\t7\t3\t881250949\n1\t31\t4\t881250940\n")
    write(folder / "u1.base", "1\t7\t3\t881250949\n")
    none = "|0" * 16
    lines = f'7|Café "Noir" (1995)|01-Jan-1995||http://x/?a=b|0|1|0{none}\n'
    lines += f"31|Old (1990)|01-Jan-1990|||0|0|0|1|1{'|0' * 14}\n"
    write(folder / "u.item", lines.encode("latin-1"))
    return folder


def movielens_1m(folder: Path) -> Path:
    write(folder / "ratings.dat", "1::7::5::978300760\n1::31::3::978300750\n")
    write(folder / "movies.dat", "7::Café: Noir (1995)::Action|Drama\n31::Old (1990)::Comedy\n".encode("latin-1"))
    write(folder / "users.dat", "1::F::1::10::48067\n")
    return folder


def movielens_10m(folder: Path) -> Path:
    movielens_1m(folder)
    write(folder / "movies.dat", "7::Café: Noir (1995)::Action|Drama\n31::Old (1990)::Comedy\n")  # UTF-8
    return folder


def movielens_latest(folder: Path) -> Path:
    """20M, 25M, 32M, latest."""
    write(folder / "ratings.csv", "userId,movieId,rating,timestamp\n1,7,5.0,978300760\n1,31,3.5,978300750\n")
    write(folder / "movies.csv", 'movieId,title,genres\n7,"Noir, The (1995)",Action|Drama\n31,Old (1990),Comedy\n')
    write(folder / "tags.csv", "userId,movieId,tag,timestamp\n1,7,dark,978300760\n")
    return folder


def amazon_2014(folder: Path) -> Path:
    reviews = [
        {
            "reviewerID": "A1",
            "asin": asin,
            "reviewerName": 'J. "Jo" O\'Hara',
            "helpful": [0, 1],
            "reviewText": "It's fine.",
            "overall": 5.0,
            "summary": "Fine",
            "unixReviewTime": time,
            "reviewTime": "09 13, 2009",
        }
        for asin, time in (("B1", 1252800000), ("B2", 1252713600))
    ]
    meta = [
        {"asin": "B1", "salesRank": {"Toys": 7}, "categories": [["Toys", "Dice"]], "title": "Kid's &amp; Dice"},
        {"asin": "B2", "title": 'The "Big" Cup', "price": 4.5, "imUrl": "http://x", "brand": "Potter", "related": {}},
    ]
    write(folder / "reviews_Toys_5.json.gz", json_lines(reviews))
    write(folder / "meta_Toys.json.gz", python_lines(meta))
    return folder


def amazon_2018(folder: Path) -> Path:
    reviews = [
        {"overall": 5.0, "verified": True, "reviewerID": "A1", "asin": asin, "unixReviewTime": time}
        for asin, time in (("B1", 1252800000), ("B2", 1252713600))
    ]
    meta = [
        {"category": ["Toys", "Dice"], "title": "Dice &amp; Cup", "brand": "Potter", "price": "$4.50", "asin": "B1"},
        {"category": [], "title": "<span>Cup</span>", "brand": "", "price": ".a{color:red}", "asin": "B2"},
    ]
    write(folder / "Toys_5.json.gz", json_lines(reviews))
    write(folder / "meta_Toys.json.gz", json_lines(meta))
    return folder


def amazon_2023(folder: Path) -> Path:
    review = {"rating": 5.0, "title": "Five stars", "text": "Good", "images": [], "helpful_vote": 0}
    reviews = [
        {**review, "asin": f"{parent}-red", "parent_asin": parent, "user_id": "AE1", "timestamp": time}
        for parent, time in (("B1", 1588687728923), ("B2", 1588687728001))
    ]
    common = {"main_category": "Toys", "average_rating": 4.8, "features": [], "images": [], "details": {"Size": "3"}}
    meta = [
        {
            **common,
            "title": "Dice",
            "price": 4.5,
            "store": "Potter",
            "categories": ["Toys", "Dice"],
            "parent_asin": "B1",
        },
        {**common, "title": "Cup &amp; Lid", "price": "None", "store": None, "categories": [], "parent_asin": "B2"},
    ]
    write(folder / "Toys.jsonl.gz", json_lines(reviews))
    write(folder / "meta_Toys.jsonl.gz", json_lines(meta))
    return folder


def yelp(folder: Path) -> Path:
    reviews = [
        {"review_id": f"r{i}", "user_id": "y1", "business_id": b, "stars": 5.0, "text": "Hm\n", "date": date}
        for i, (b, date) in enumerate((("b1", "2018-07-07 22:09:11"), ("b2", "2018-07-07 22:09:10")))
    ]
    places = [
        {"business_id": "b1", "name": "Tea House", "city": "Reno", "categories": "Tea Rooms, Cafes", "attributes": {}},
        {"business_id": "b2", "name": "Diner", "city": "Reno", "categories": None, "attributes": None},
    ]
    write(folder / "yelp_academic_dataset_review.json", json_lines(reviews))
    write(folder / "yelp_academic_dataset_business.json", json_lines(places))
    return folder


def steam(folder: Path) -> Path:
    reviews = [
        {
            "username": "Max ☆",
            "hours": 0.1,
            "product_id": game,
            "page_order": 0,
            "date": date,
            "text": "It's \\ ok",
            "early_access": False,
        }
        for game, date in (("10", "2017-12-17"), ("20", "2017-12-16"))
    ]
    games = [
        {
            "publisher": "P",
            "genres": ["Action", "Indie"],
            "app_name": "Saber's Edge",
            "title": "Saber's Edge",
            "price": 4.99,
            "id": "10",
            "developer": "D",
        },
        {"app_name": "Möbius", "url": "http://x", "price": "Free to Play", "early_access": True, "id": "20"},
    ]
    write(folder / "steam_reviews.json.gz", python_lines(reviews, unicode_marks=True))
    write(folder / "steam_games.json.gz", python_lines(games, unicode_marks=True))
    return folder


def goodreads(folder: Path) -> Path:
    reads = [
        {"user_id": "g1", "book_id": book, "is_read": True, "rating": 4, "date_added": added, "read_at": ""}
        for book, added in (("5", "Fri Aug 25 13:55:02 -0700 2017"), ("6", "Fri Aug 25 20:55:01 +0000 2017"))
    ]
    books = [
        {
            "book_id": "5",
            "title": "Stones",
            "publisher": "Mill",
            "publication_year": "1984",
            "authors": [{"author_id": "1", "role": ""}],
        },
        {"book_id": "6", "title": "Rivers", "publisher": "", "publication_year": "", "authors": []},
    ]
    write(folder / "goodreads_interactions_poetry.json.gz", json_lines(reads))
    write(folder / "goodreads_books_poetry.json.gz", json_lines(books))
    return folder


def hm(folder: Path) -> Path:
    header = "t_dat,customer_id,article_id,price,sales_channel_id\n"
    rows = "2018-09-21,c1,0108775015,0.05,2\n2018-09-20,c1,0110065001,0.03,2\n2018-09-22,c1,0108775015,0.05,2\n"
    write(folder / "transactions_train.csv", header + rows)
    articles = "article_id,product_code,prod_name,product_type_name,colour_group_name,index_group_name,detail_desc\n"
    articles += '0108775015,0108775,Strap top,Vest top,Black,Ladieswear,"Top, narrow straps."\n'
    articles += "0110065001,0110065,OP T-shirt,Bra,White,Ladieswear,\n"
    write(folder / "articles.csv", articles)
    return folder


def instacart(folder: Path) -> Path:
    header = "order_id,user_id,eval_set,order_number,order_dow,order_hour_of_day,days_since_prior_order\n"
    write(folder / "orders.csv", header + "11,1,prior,2,3,07,15.0\n12,1,prior,1,2,08,\n13,1,train,3,4,07,21.0\n")
    header = "order_id,product_id,add_to_cart_order,reordered\n"
    write(folder / "order_products__prior.csv", header + "11,196,1,0\n12,77,1,0\n")
    write(folder / "order_products__train.csv", header + "13,196,1,1\n")
    write(
        folder / "products.csv", 'product_id,product_name,aisle_id,department_id\n196,Soda,9,7\n77,"Tea, green",3,7\n'
    )
    write(folder / "aisles.csv", "aisle_id,aisle\n9,soft drinks\n3,tea\n")
    write(folder / "departments.csv", "department_id,department\n7,beverages\n")
    return folder


def recbole(folder: Path) -> Path:
    write(folder / "d.inter", "user_id:token\titem_id:token\ttimestamp:float\n1\t7\t978300760\n1\t31\t978300750.0\n")
    item = "item_id:token\tmovie_title:token_seq\trelease_year:token\tgenre:token_seq\n"
    write(folder / "d.item", item + '7\t"Noir" night\t1995\tAction Drama\n' + "31\tOld\t1990\tComedy\n")
    return folder


def mind(folder: Path) -> Path:
    behaviors = (
        "1\tU1\t11/11/2019 9:05:58 AM\tN3 N1\tN2-1 N4-0\n"
        "2\tU1\t11/11/2019 1:05:58 PM\tN3 N1\tN4-0 N1-1\n"
        "3\tU2\t11/12/2019 6:11:30 PM\t\tN2-0 N4-1\n"
    )
    write(folder / "behaviors.tsv", behaviors)
    news = [("N1", 'The "cat'), ("N2", "Rain"), ("N3", "Goal"), ("N4", "Vote")]
    lines = (f'{i}\tnews\tlocal\t{title}\tAbstract\thttp://x\t[{{"Label": "x"}}]\t[]\n' for i, title in news)
    write(folder / "news.tsv", "".join(lines))
    return folder


PUBLISHERS: dict[str, tuple[str, Callable[[Path], Path]]] = {
    "movielens-100k": ("movielens", movielens_100k),
    "movielens-1m": ("movielens", movielens_1m),
    "movielens-10m": ("movielens", movielens_10m),
    "movielens-latest": ("movielens", movielens_latest),
    "amazon2014": ("amazon2014", amazon_2014),
    "amazon2018": ("amazon2018", amazon_2018),
    "amazon2023": ("amazon2023", amazon_2023),
    "yelp": ("yelp", yelp),
    "steam": ("steam", steam),
    "goodreads": ("goodreads", goodreads),
    "hm": ("hm", hm),
    "instacart": ("instacart", instacart),
    "recbole": ("recbole", recbole),
    "mind": ("mind", mind),
}
