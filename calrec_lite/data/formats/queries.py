"""Tables that a publisher spreads over several files or columns, as SQL over what each file is read from."""

from collections.abc import Mapping

GENRES = (  # the last columns of MovieLens-100K's u.item, 1 or 0
    "unknown Action Adventure Animation Children's Comedy Crime Documentary Drama Fantasy Film-Noir Horror Musical "
    "Mystery Romance Sci-Fi Thriller War Western"
).split()


def movielens_100k(files: Mapping[str, str]) -> str:
    """Title and genres in words."""
    flags = (f"CASE WHEN \"{genre}\" = '1' THEN '{genre.replace(chr(39), chr(39) * 2)}' END" for genre in GENRES[1:])
    return f"SELECT item_id, movie_title, concat_ws('|', {', '.join(flags)}) AS genres FROM {files['u.item']}"


def instacart_events(files: Mapping[str, str]) -> str:
    """Products with their order's user and number; the orders of the prior and of the train part."""
    parts = [f"SELECT order_id, product_id FROM {scan}" for name, scan in files.items() if name != "orders.csv"]
    return (
        f"SELECT o.user_id, p.product_id, o.order_number FROM ({' UNION ALL '.join(parts)}) p "
        f"LEFT JOIN (SELECT order_id, user_id, order_number FROM {files['orders.csv']}) o USING (order_id)"
    )


def instacart_items(files: Mapping[str, str]) -> str:
    """Products with the names of aisle and department."""
    return (
        f"SELECT p.product_id, p.product_name, a.aisle, d.department FROM {files['products.csv']} p "
        f"LEFT JOIN {files['aisles.csv']} a USING (aisle_id) "
        f"LEFT JOIN {files['departments.csv']} d USING (department_id)"
    )


def mind_events(files: Mapping[str, str]) -> str:
    """Clicks.

    Those of impressions have the impression's time. Those of the history have none: a user's first impression names
    what was clicked before, oldest first; they are put before it, a second apart.
    """
    return f"""
        WITH shown AS (
            SELECT row_number() OVER () AS line, user, time AS said, history, impressions,
                   epoch(try_strptime(trim(time), '%m/%d/%Y %I:%M:%S %p')) AS moment
            FROM {files["behaviors.tsv"]}
        ), earlier AS (
            SELECT user, min(moment) AS moment,
                   string_split(trim(coalesce(arg_min(history, (moment, line)), '')), ' ') AS history
            FROM shown WHERE moment IS NOT NULL GROUP BY user
        )
        SELECT user, item, CAST(CAST(moment AS BIGINT) - length(history) + place - 1 AS VARCHAR) AS time FROM (
            SELECT user, moment, history, unnest(history) AS item, generate_subscripts(history, 1) AS place FROM earlier
        ) WHERE item <> ''
        UNION ALL
        SELECT user, regexp_replace(entry, '-1$', '') AS item, coalesce(CAST(CAST(moment AS BIGINT) AS VARCHAR), said)
        FROM (SELECT user, moment, said, unnest(string_split(trim(coalesce(impressions, '')), ' ')) AS entry FROM shown)
        WHERE entry LIKE '%-1'
    """
